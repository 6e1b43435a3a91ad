//! Broken checkpoints: each ends in one error that names what is at fault, without a panic and without
//! asking for much memory.

use std::path::Path;

use serde_json::{Map, Value, json};
use warploom::checkpoint::Checkpoint;

use super::{
    allocations::most_held,
    folder::{Entry, Folder, file_of, file_with_header, header, tiny_config, tiny_tensors},
};

/// Opening a tiny broken checkpoint may not hold more than this.
const MOST: usize = 1 << 20;

/// Opens the folder `dir`, which must fail with an error that contains every word of `expected` that is
/// separated from others by ` & `.
fn assert_refused(case: &str, dir: &Path, expected: &str) {
    let (result, held) = most_held(|| Checkpoint::open(dir).map(|_| ()));
    let Err(error) = result else { panic!("{case}: was opened") };
    let text = error.to_string();
    for word in expected.split(" & ") {
        assert!(text.contains(word), "{case}: '{text}' does not contain '{word}'");
    }
    assert!(!text.chars().any(char::is_control), "{case}: '{text}' has control characters");
    assert!(text.len() < 2000, "{case}: the error has {} bytes", text.len());
    assert!(held < MOST, "{case}: {held} bytes were held");
}

fn assert_folder_refused(case: &str, folder: &Folder, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    assert_refused(case, dir.path(), expected);
}

#[test]
fn the_unbroken_checkpoints_open() {
    for folder in [Folder::single(), Folder::sharded()] {
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let norm = checkpoint.tensor("model.norm.weight", &[8]).unwrap();
        assert_eq!((norm.rows(), norm.columns()), (1, 8));
        assert_eq!(norm.bytes(), 0.5f32.to_le_bytes().repeat(8));
    }
}

#[test]
fn harmless_oddities_open() {
    let open = |folder: &Folder| {
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    };
    // Stray tensors of any type, in any order, data that is not aligned, mixed dtypes.
    let mut tensors = tiny_tensors();
    let inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    tensors.insert(0, Entry { name: inv_freq, dtype: "I64", shape: vec![1], data: vec![0; 8] });
    tensors.insert(0, Entry { name: "odd".to_owned(), dtype: "U8", shape: vec![3], data: vec![0; 3] });
    tensors.reverse();
    let norm = tensors.iter_mut().find(|tensor| tensor.name == "model.norm.weight").unwrap();
    (norm.dtype, norm.data) = ("BF16", vec![0; 16]);
    let mut folder = Folder::single();
    folder.set("model.safetensors", file_of(&tensors));
    open(&folder);
    // A tied model needs no head; a stray name of the index need not exist.
    let mut config = tiny_config();
    config.insert("tie_word_embeddings".to_owned(), json!(true));
    let mut folder = Folder::sharded();
    folder.set_config(&config);
    let mut map = folder.weight_map();
    map.remove("lm_head.weight");
    map.insert("stray".to_owned(), json!("one.safetensors"));
    folder.set_index(&map);
    open(&folder);
}

#[test]
fn configs_that_describe_no_model_are_refused() {
    let big = 1u64 << 40;
    let bad_fields: Vec<(&str, Value, &str)> = vec![
        ("model_type", json!("gpt2"), "model_type & gpt2"),
        ("model_type", json!(null), "model_type & missing"),
        ("model_type", json!(7), "model_type"),
        ("model_type", json!("a\u{1b}[31m"), "model_type & \\u{1b}"),
        ("num_hidden_layers", json!(0), "num_hidden_layers & 0"),
        ("num_hidden_layers", json!(10_001), "num_hidden_layers"),
        ("num_hidden_layers", json!(-1), "num_hidden_layers & -1"),
        ("num_hidden_layers", json!(2.0), "num_hidden_layers"),
        ("num_hidden_layers", json!("2"), "num_hidden_layers"),
        ("num_hidden_layers", json!([2]), "num_hidden_layers & a list"),
        ("num_hidden_layers", json!(null), "num_hidden_layers & missing"),
        ("num_hidden_layers", json!(u64::MAX), "num_hidden_layers"),
        ("hidden_size", json!(0), "hidden_size"),
        ("hidden_size", json!(big), "hidden_size"),
        ("hidden_size", json!(9), "num_attention_heads & does not divide"),
        ("hidden_size", json!(true), "hidden_size"),
        ("intermediate_size", json!(0), "intermediate_size"),
        ("intermediate_size", json!(big), "intermediate_size"),
        ("intermediate_size", json!({}), "intermediate_size & an object"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_attention_heads", json!(3), "num_attention_heads"),
        ("num_attention_heads", json!(big), "num_attention_heads"),
        ("num_key_value_heads", json!(0), "num_key_value_heads"),
        ("num_key_value_heads", json!(3), "num_key_value_heads & does not divide"),
        ("num_key_value_heads", json!(4), "num_key_value_heads & does not divide"),
        ("num_key_value_heads", json!("1"), "num_key_value_heads"),
        ("head_dim", json!(0), "head_dim"),
        ("head_dim", json!(3), "head_dim & odd"),
        ("head_dim", json!(big), "head_dim"),
        ("vocab_size", json!(0), "vocab_size"),
        ("vocab_size", json!((1 << 24) + 1), "vocab_size"),
        ("vocab_size", json!(-5), "vocab_size"),
        ("max_position_embeddings", json!(0), "max_position_embeddings"),
        ("max_position_embeddings", json!(big), "max_position_embeddings"),
        ("rms_norm_eps", json!(0), "rms_norm_eps"),
        ("rms_norm_eps", json!(-1e-5), "rms_norm_eps"),
        ("rms_norm_eps", json!(1e-60), "rms_norm_eps"),
        ("rms_norm_eps", json!(2), "rms_norm_eps"),
        ("rms_norm_eps", json!("1e-5"), "rms_norm_eps"),
        ("hidden_act", json!("gelu"), "hidden_act & gelu"),
        ("hidden_act", json!(1), "hidden_act"),
        ("rope_theta", json!(0), "rope_theta"),
        ("rope_theta", json!(-10000), "rope_theta"),
        ("rope_theta", json!(1e30), "rope_theta"),
        ("rope_theta", json!([1]), "rope_theta"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("rope_scaling", json!("linear"), "rope_scaling"),
        ("rope_scaling", json!([1]), "rope_scaling"),
        ("rope_scaling", json!({"rope_type": "longrope"}), "rope_scaling.rope_type & longrope"),
        ("rope_scaling", json!({"type": "su"}), "rope_scaling.type & su"),
        ("rope_scaling", json!({"rope_type": 3}), "rope_scaling.rope_type"),
        ("rope_scaling", json!({"factor": 2.0}), "rope_scaling.rope_type & missing"),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor & missing"),
        ("rope_scaling", json!({"type": "linear", "factor": 0}), "rope_scaling.factor"),
        ("rope_scaling", json!({"type": "linear", "factor": -2}), "rope_scaling.factor"),
        ("rope_scaling", json!({"type": "dynamic", "factor": "2"}), "rope_scaling.factor"),
        ("rope_scaling", json!({"type": "llama3", "factor": 8}), "rope_scaling.low_freq_factor"),
        (
            "rope_scaling",
            json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "rope_scaling.high_freq_factor",
        ),
        (
            "rope_scaling",
            json!({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": 0}),
            "original_max_position_embeddings",
        ),
        ("rope_scaling", json!({"type": "yarn"}), "rope_scaling.factor & missing"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2}), "beta_fast"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4, "attention_factor": -1}), "attention_factor"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4, "truncate": 1}), "truncate"),
        ("rope_parameters", json!({"rope_type": "xpos"}), "rope_parameters.rope_type & xpos"),
        ("rope_parameters", json!({"rope_theta": 0}), "rope_parameters.rope_theta"),
        ("rope_parameters", json!({"a\u{7}": {"rope_theta": "x"}}), "rope_parameters.a\\u{7}.rope_theta"),
        ("attention_bias", json!(1), "attention_bias"),
        ("mlp_bias", json!("no"), "mlp_bias"),
        ("tie_word_embeddings", json!(0), "tie_word_embeddings"),
        ("eos_token_id", json!(-1), "eos_token_id & -1"),
        ("eos_token_id", json!("</s>"), "eos_token_id"),
        ("eos_token_id", json!([2, null]), "eos_token_id & null"),
        ("eos_token_id", json!([[2]]), "eos_token_id"),
        ("eos_token_id", json!(vec![2; 2000]), "eos_token_id & 2000"),
        ("eos_token_id", json!(1u64 << 32), "eos_token_id"),
        ("bos_token_id", json!(-1), "bos_token_id"),
        ("sliding_window", json!(0), "sliding_window"),
        ("sliding_window", json!(-4), "sliding_window"),
        ("sliding_window", json!("wide"), "sliding_window"),
        ("attention_chunk_size", json!(0), "attention_chunk_size"),
        ("layer_types", json!("full_attention"), "layer_types"),
        ("layer_types", json!(["full_attention"]), "layer_types & 1 entries"),
        ("layer_types", json!(["full_attention", "linear_attention"]), "layer_types & linear_attention"),
        ("layer_types", json!(["full_attention", 3]), "layer_types & 3"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "sliding_window & missing"),
        ("layer_types", json!(["chunked_attention", "full_attention"]), "attention_chunk_size & missing"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantization_config & gptq"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
        ("quantization_config", json!("awq"), "quantization_config"),
    ];
    for (field, value, expected) in bad_fields {
        let mut config = tiny_config();
        let case = format!("{field} = {value}");
        config.insert(field.to_owned(), value);
        let mut folder = Folder::single();
        folder.set_config(&config);
        assert_folder_refused(&case, &folder, &format!("config.json & {expected}"));
    }
    // Sizes each within bounds whose product is not.
    let mut config = tiny_config();
    for (field, value) in [
        ("hidden_size", 1 << 20),
        ("head_dim", 1 << 16),
        ("num_attention_heads", 1 << 16),
        ("num_key_value_heads", 1 << 16),
        ("num_hidden_layers", 10_000),
    ] {
        config.insert(field.to_owned(), json!(value));
    }
    let mut folder = Folder::single();
    folder.set_config(&config);
    assert_folder_refused("too many parameters", &folder, "config.json & parameters");
}

#[test]
fn files_that_are_not_the_json_expected_are_refused() {
    let valid = serde_json::to_string(&tiny_config()).unwrap();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let with = |extra: &str| valid.replacen('{', &format!("{{{extra},"), 1).into_bytes();
    let not_utf8 = [&valid.as_bytes()[..valid.len() - 1], b", \"x\": \"\xff\"}"].concat();
    let bad_bytes: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("spaces", b"  \n ".to_vec()),
        ("zeros", vec![0; 64]),
        ("half of it", valid.as_bytes()[..valid.len() / 2].to_vec()),
        ("text after it", format!("{valid} x").into_bytes()),
        ("a byte order mark", format!("\u{feff}{valid}").into_bytes()),
        ("not UTF-8", not_utf8),
        ("a list", b"[1, 2]".to_vec()),
        ("a number", b"3".to_vec()),
        ("a comment", format!("// x\n{valid}").into_bytes()),
        ("a trailing comma", valid.replace('}', ",}").into_bytes()),
        ("NaN", with("\"rope_theta\": NaN")),
        ("infinity", with("\"rope_theta\": 1e999")),
        ("a key twice", with("\"hidden_size\": 8")),
        ("a nested key twice", with("\"rope_scaling\": {\"type\": \"default\", \"type\": \"default\"}")),
        ("deep nesting", deep.clone().into_bytes()),
        ("deep nesting in a field", with(&format!("\"x\": {deep}"))),
        ("a lone surrogate", with("\"x\": \"\\ud800\"")),
    ];
    for (case, bytes) in &bad_bytes {
        for file in ["config.json", "generation_config.json"] {
            // What follows a valid object is the same mistake in both files; a valid config is none.
            let mut folder = Folder::single();
            folder.set(file, bytes.clone());
            assert_folder_refused(&format!("{file}: {case}"), &folder, file);
        }
    }
    for (case, bytes) in bad_bytes.iter().filter(|(case, _)| !case.contains("key") && *case != "NaN") {
        let mut folder = Folder::sharded();
        folder.set("model.safetensors.index.json", bytes.clone());
        assert_folder_refused(&format!("index: {case}"), &folder, "model.safetensors.index.json");
    }
    for (case, generation) in
        [("text", json!({"eos_token_id": "x"})), ("negative", json!({"eos_token_id": [-3]}))]
    {
        let mut folder = Folder::single();
        folder.set("generation_config.json", generation.to_string());
        assert_folder_refused(case, &folder, "generation_config.json & eos_token_id");
    }
}

#[test]
fn files_too_large_are_not_read() {
    // Sparse: they take no space on disk.
    for (file, folder) in [
        ("config.json", Folder::single()),
        ("generation_config.json", Folder::single()),
        ("model.safetensors.index.json", Folder::sharded()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        std::fs::File::create(dir.path().join(file)).unwrap().set_len(1 << 40).unwrap();
        assert_refused(file, dir.path(), &format!("{file} & 1099511627776 bytes"));
    }
}

/// The tiny file's header and data, to be changed and put together again.
fn parts() -> (Map<String, Value>, Vec<u8>) {
    let tensors = tiny_tensors();
    (header(&tensors), tensors.iter().flat_map(|tensor| tensor.data.clone()).collect())
}

#[test]
fn truncated_and_lengthened_files_are_refused() {
    let whole = Folder::single().files["model.safetensors"].clone();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut cuts: Vec<usize> = (0..=9).chain([header / 2, header - 1, header, header + 1]).collect();
    // Every boundary between two tensors, and the byte before it.
    let mut end = header;
    for tensor in tiny_tensors() {
        end += tensor.data.len();
        cuts.extend([end - 1, end]);
    }
    assert_eq!(end, whole.len());
    for cut in cuts.into_iter().filter(|&cut| cut < whole.len()) {
        let mut folder = Folder::single();
        folder.set("model.safetensors", &whole[..cut]);
        assert_folder_refused(&format!("cut to {cut}"), &folder, "model.safetensors");
        let mut folder = Folder::sharded();
        folder.set("two.safetensors", &whole[..cut]);
        assert_folder_refused(&format!("shard cut to {cut}"), &folder, "two.safetensors");
    }
    let mut folder = Folder::single();
    folder.set("model.safetensors", [&whole[..], b"\0"].concat());
    assert_folder_refused("a byte more", &folder, "model.safetensors & end");
}

#[test]
fn lying_headers_are_refused() {
    let whole = Folder::single().files["model.safetensors"].clone();
    let true_length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    for length in
        [0, 1, 2, true_length - 1, true_length + 1, true_length * 2, 16 << 20, (16 << 20) + 1, 99_999_999]
            .into_iter()
            .chain([1 << 32, u64::MAX / 2, u64::MAX - 8, u64::MAX])
    {
        let mut folder = Folder::single();
        folder.set("model.safetensors", [&length.to_le_bytes()[..], &whole[8..]].concat());
        assert_folder_refused(&format!("header length {length}"), &folder, "model.safetensors");
    }

    let (valid, data) = parts();
    let norm = "model.norm.weight";
    let offsets = valid[norm]["data_offsets"].clone();
    let (start, end) = (offsets[0].as_u64().unwrap(), offsets[1].as_u64().unwrap());
    let total = data.len() as u64;
    let entry = |dtype: Value, shape: Value, offsets: Value| json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
    let with_offsets = |offsets: Value| entry(json!("F32"), json!([8]), offsets);
    let with_shape = |shape: Value| entry(json!("F32"), shape, json!([start, end]));
    let huge = 1u64 << 63;
    let descriptions: Vec<(&str, Value)> = vec![
        ("overlap before", with_offsets(json!([start - 4, end - 4]))),
        ("overlap after", with_offsets(json!([start + 4, end + 4]))),
        ("another's place", with_offsets(json!([0, 32]))),
        ("hole", with_offsets(json!([start + 4, end]))),
        ("backwards", with_offsets(json!([end, start]))),
        ("empty", with_offsets(json!([start, start]))),
        ("past the end", with_offsets(json!([total, total + 32]))),
        ("far past the end", with_offsets(json!([huge, huge + 32]))),
        ("at the end of all numbers", with_offsets(json!([u64::MAX - 31, u64::MAX]))),
        ("negative", with_offsets(json!([-32, 0]))),
        ("fractional", with_offsets(json!([start as f64 + 0.5, end]))),
        ("one offset", with_offsets(json!([start]))),
        ("three offsets", with_offsets(json!([start, end, end]))),
        ("no offsets", with_offsets(json!(null))),
        ("offsets in words", with_offsets(json!("all"))),
        ("larger shape", with_shape(json!([9]))),
        ("smaller shape", with_shape(json!([7]))),
        ("shape that overflows", with_shape(json!([huge, 4]))),
        ("shape whose bits overflow", with_shape(json!([1u64 << 60]))),
        ("zero in the shape", with_shape(json!([0, 8]))),
        ("negative shape", with_shape(json!([-8]))),
        ("no shape", with_shape(json!(null))),
        ("shape beyond 64 bits", with_shape(json!(1e30))),
        ("unknown dtype", entry(json!("F31"), json!([8]), offsets.clone())),
        ("dtype in lower case", entry(json!("f32"), json!([8]), offsets.clone())),
        ("dtype of another size", entry(json!("F16"), json!([8]), offsets.clone())),
        ("no dtype", entry(json!(null), json!([8]), offsets.clone())),
        ("not an object", json!([1, 2, 3])),
        ("null", json!(null)),
    ];
    for (case, description) in descriptions {
        let mut header = valid.clone();
        header.insert(norm.to_owned(), description);
        let mut folder = Folder::single();
        folder.set("model.safetensors", file_with_header(&serde_json::to_vec(&header).unwrap(), &data));
        assert_folder_refused(case, &folder, "model.safetensors");
    }

    let text = serde_json::to_string(&valid).unwrap();
    let twice = text.replacen('{', &format!("{{\"{norm}\": {},", valid[norm]), 1);
    let metadata = |value: &str| text.replacen('{', &format!("{{\"__metadata__\": {value},"), 1);
    let deep = "[".repeat(50_000);
    let headers: Vec<(&str, Vec<u8>)> = vec![
        ("no JSON", b"hello, world".to_vec()),
        ("not UTF-8", b"{\"\xff\": 1}".to_vec()),
        ("a list", b"[]".to_vec()),
        ("a tensor twice", twice.into_bytes()),
        ("metadata is a number", metadata("3").into_bytes()),
        ("metadata holds numbers", metadata("{\"format\": 3}").into_bytes()),
        ("deep nesting", deep.clone().into_bytes()),
        ("deep nesting in a tensor", format!("{{\"x\": {deep}").into_bytes()),
        ("zeros", vec![0; 100]),
        ("no tensors", b"{}".to_vec()),
    ];
    for (case, header) in headers {
        let mut folder = Folder::single();
        folder.set("model.safetensors", file_with_header(&header, &data));
        assert_folder_refused(case, &folder, "model.safetensors");
    }
    let mut folder = Folder::single();
    folder.set("model.safetensors", file_with_header(b"{}", b""));
    assert_folder_refused(
        "an empty file of tensors",
        &folder,
        "model.safetensors & model.embed_tokens.weight & missing",
    );
}

#[test]
fn weights_that_do_not_fit_the_model_are_refused() {
    for tensor in tiny_tensors() {
        let name = &tensor.name;
        let changed = |change: &dyn Fn(&mut Entry)| {
            let mut tensors = tiny_tensors();
            change(tensors.iter_mut().find(|other| other.name == *name).unwrap());
            let mut folder = Folder::single();
            folder.set("model.safetensors", file_of(&tensors));
            folder
        };
        let expected = |reason: &str| format!("model.safetensors & {name} & {reason}");
        let gone = changed(&|tensor| tensor.name = format!("{name}2"));
        assert_folder_refused("missing", &gone, &expected("missing"));
        let longer = changed(&|tensor| {
            tensor.shape[0] += 1;
            tensor.data.resize(tensor.shape.iter().product::<usize>() * 4, 0);
        });
        assert_folder_refused("a row more", &longer, &expected("shape"));
        let flat = changed(&|tensor| tensor.shape = vec![1, tensor.data.len() / 4, 1]);
        assert_folder_refused("another rank", &flat, &expected("shape"));
        for (dtype, size) in [("I32", 4), ("F64", 8), ("F8_E4M3", 1), ("U8", 1), ("BOOL", 1), ("I64", 8)] {
            let other = changed(&|tensor| {
                tensor.dtype = dtype;
                tensor.data = vec![0; tensor.shape.iter().product::<usize>() * size];
            });
            assert_folder_refused(dtype, &other, &expected(dtype));
        }
    }
    let mut folder = Folder::single();
    let mut tensors = tiny_tensors();
    tensors.retain(|tensor| tensor.name != "lm_head.weight");
    folder.set("model.safetensors", file_of(&tensors));
    assert_folder_refused("untied without a head", &folder, "lm_head.weight & tie_word_embeddings");
    // Transposed: the right number of elements.
    let mut tensors = tiny_tensors();
    let down = tensors.iter_mut().find(|tensor| tensor.name.ends_with("0.mlp.down_proj.weight")).unwrap();
    down.shape.reverse();
    folder.set("model.safetensors", file_of(&tensors));
    assert_folder_refused("transposed", &folder, "down_proj & [12, 8] & [8, 12]");
    for bias in ["attention_bias", "mlp_bias"] {
        let mut config = tiny_config();
        config.insert(bias.to_owned(), json!(true));
        let mut folder = Folder::single();
        folder.set_config(&config);
        assert_folder_refused(bias, &folder, "bias & missing");
    }
}

#[test]
fn shard_names_cannot_lead_elsewhere() {
    let names = [
        "",
        ".",
        "..",
        "../one.safetensors",
        "a/../one.safetensors",
        "/etc/passwd",
        "./one.safetensors",
        "sub/one.safetensors",
        "..\\one.safetensors",
        "C:\\one.safetensors",
        "C:one.safetensors",
        "one.safetensors\0",
        "one\n.safetensors",
        "\u{1b}[2J",
        "one.safetensors/",
        "//server/share",
    ];
    for name in names.into_iter().map(str::to_owned).chain(["x".repeat(5000)]) {
        let mut folder = Folder::sharded();
        let mut map = folder.weight_map();
        map.insert("model.norm.weight".to_owned(), json!(name));
        folder.set_index(&map);
        let case = format!("shard {name:?}");
        assert_folder_refused(
            &case,
            &folder,
            "model.safetensors.index.json & model.norm.weight & plain file name",
        );
    }
}

#[test]
fn indexes_that_do_not_fit_their_shards_are_refused() {
    let index = "model.safetensors.index.json";
    let with_map = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut folder = Folder::sharded();
        let mut map = folder.weight_map();
        change(&mut map);
        folder.set_index(&map);
        folder
    };
    let absent = with_map(&|map| {
        map.insert("model.norm.weight".to_owned(), json!("three.safetensors"));
    });
    assert_folder_refused("a shard that does not exist", &absent, "three.safetensors");
    let wrong = with_map(&|map| {
        map.insert("model.norm.weight".to_owned(), json!("one.safetensors"));
    });
    assert_folder_refused(
        "a shard without the tensor",
        &wrong,
        "one.safetensors & model.norm.weight & missing",
    );
    let unlisted = with_map(&|map| {
        map.remove("model.norm.weight");
    });
    assert_folder_refused("a tensor in no shard", &unlisted, "model.norm.weight & missing");
    for (case, shard) in [("number", json!(1)), ("null", json!(null)), ("list", json!(["one.safetensors"]))] {
        let folder = with_map(&|map| {
            map.insert("model.norm.weight".to_owned(), shard.clone());
        });
        assert_folder_refused(case, &folder, index);
    }
    for (case, text) in [
        ("no weight_map", "{}"),
        ("empty weight_map", r#"{"weight_map": {}}"#),
        ("weight_map is a list", r#"{"weight_map": []}"#),
        ("weight_map is null", r#"{"weight_map": null}"#),
        ("two weight_maps", r#"{"weight_map": {"a": "b"}, "weight_map": {"a": "b"}}"#),
        ("a tensor twice", r#"{"weight_map": {"a": "b", "a": "b"}}"#),
    ] {
        let mut folder = Folder::sharded();
        folder.set(index, text);
        assert_folder_refused(case, &folder, index);
    }
    for gone in ["one.safetensors", "two.safetensors"] {
        let mut folder = Folder::sharded();
        folder.files.remove(gone);
        assert_folder_refused("missing shard", &folder, gone);
    }
}

#[test]
fn folders_that_hold_no_checkpoint_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused("empty folder", dir.path(), "config.json");
    assert_refused("no folder", &dir.path().join("absent"), "absent");
    assert_refused("a file below a file", &dir.path().join("absent/x"), "absent");
    let mut folder = Folder::single();
    folder.write(dir.path());
    assert_refused("a file", &dir.path().join("config.json"), "config.json & no folder");
    folder.files.remove("model.safetensors");
    folder.set("pytorch_model.bin", "x");
    assert_folder_refused("no weights", &folder, "model.safetensors");
    let long = dir.path().join("x".repeat(5000));
    assert_refused("a name too long", &long, "xxx");
}

#[cfg(unix)]
mod unix {
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        process::Command,
        time::{Duration, Instant},
    };

    use super::*;

    const FILES: [&str; 4] =
        ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"];

    /// A folder in which `file`, instead of what it should be, is what `make` puts there.
    fn with_file(file: &str, make: impl Fn(&Path)) -> tempfile::TempDir {
        let mut folder =
            if file == "model.safetensors.index.json" { Folder::sharded() } else { Folder::single() };
        folder.files.remove(file);
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        make(&dir.path().join(file));
        dir
    }

    #[test]
    fn only_regular_files_are_read() {
        for file in FILES {
            let dir = with_file(file, |path| std::fs::create_dir(path).unwrap());
            assert_refused("directory", dir.path(), &format!("{file} & directory"));

            let started = Instant::now();
            let dir = with_file(file, |path| {
                assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            });
            assert_refused("FIFO", dir.path(), &format!("{file} & FIFO"));
            assert!(started.elapsed() < Duration::from_secs(5), "waited for a writer");

            let dir = with_file(file, |path| symlink("/dev/zero", path).unwrap());
            assert_refused("device", dir.path(), &format!("{file} & device"));
            let dir = with_file(file, |path| symlink(path, path).unwrap());
            assert_refused("link loop", dir.path(), file);
            let dir = with_file(file, |path| {
                let _ = std::os::unix::net::UnixListener::bind(path).unwrap();
            });
            assert_refused("socket", dir.path(), &format!("{file} & socket"));
        }
        for file in ["config.json", "model.safetensors"] {
            let dir = with_file(file, |path| symlink("nowhere", path).unwrap());
            assert_refused("dangling link", dir.path(), file);
        }
        let dir = tempfile::tempdir().unwrap();
        symlink(dir.path().join("loop"), dir.path().join("loop")).unwrap();
        assert_refused("folder is a link loop", &dir.path().join("loop"), "loop");
    }

    #[test]
    fn links_to_regular_files_are_followed() {
        // The hub's cache: snapshots are links into a folder of blobs.
        let blobs = tempfile::tempdir().unwrap();
        Folder::sharded().write(blobs.path());
        let snapshot = tempfile::tempdir().unwrap();
        for file in Folder::sharded().files.keys() {
            symlink(blobs.path().join(file), snapshot.path().join(file)).unwrap();
        }
        Checkpoint::open(snapshot.path()).unwrap();
    }

    #[test]
    fn what_may_not_be_read_is_refused() {
        for file in FILES {
            let dir = with_file(file, |path| {
                std::fs::write(path, "{}").unwrap();
                std::fs::set_permissions(path, PermissionsExt::from_mode(0o000)).unwrap();
            });
            // Root may read everything; then the empty object is what is at fault, if anything is.
            if std::fs::read(dir.path().join(file)).is_err() {
                assert_refused("unreadable", dir.path(), &format!("{file} & ermission denied"));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        Folder::single().write(&closed);
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
        if std::fs::read_dir(&closed).is_err() {
            assert_refused("unreadable folder", &closed, "closed & ermission denied");
        }
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    }
}
