//! Feed-forward weights in e4m3: quantised at load, and read from `fbgemm_fp8` checkpoints.

mod common;
#[path = "checkpoint/folder.rs"]
#[allow(dead_code)]
mod folder;

use common::{golden_dir, greedy, ids, json, logits, reference, run};
use folder::{Entry, Folder};
use serde_json::{Value, json as value};
use warploom::{
    backend::{Cpu, Isa},
    checkpoint::{Checkpoint, Dtype, Tensor, footprint::Footprint, fp8},
    decode::{Plan, Request, policy::Fixed},
    model::Llama,
};

/// Of the golden checkpoints, those with the reference's RoPE: bf16 with GQA, biases, and odd sizes in f16.
const NAMES: [&str; 3] = ["gqa_bf16", "both_bias_bf16", "odd_all_f16"];

fn open(name: &str, fp8: bool) -> Checkpoint {
    let mut checkpoint = Checkpoint::open(&golden_dir(name)).unwrap();
    checkpoint.set_fp8(fp8).unwrap();
    checkpoint
}

fn prompt(name: &str) -> Vec<u32> {
    let golden = json(&golden_dir(name).join("golden.json"));
    ids(&golden["prompts"].as_object().unwrap().values().next().unwrap()["ids"])
}

/// Every weight as a model takes it.
fn weights(checkpoint: &Checkpoint) -> Vec<(String, Tensor)> {
    let take = |(name, shape): (String, Vec<usize>)| {
        let tensor = checkpoint.weight(&name, &shape).unwrap_or_else(|e| panic!("{e}"));
        (name, tensor)
    };
    checkpoint.config.tensors().map(take).collect()
}

/// The files of a `fbgemm_fp8` checkpoint: the golden one of this name, quantised.
fn fbgemm(name: &str) -> Folder {
    let checkpoint = open(name, true);
    let mut tensors = Vec::new();
    for (name, tensor) in weights(&checkpoint) {
        let shape = match tensor.rows() {
            1 => vec![tensor.columns()],
            rows => vec![rows, tensor.columns()],
        };
        let dtype = match tensor.dtype() {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::E4m3 => "F8_E4M3",
        };
        if let Some(fp8) = tensor.fp8() {
            let data = fp8.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let shape = vec![tensor.rows(), 1];
            tensors.push(Entry { name: format!("{name}_scale"), dtype: "F32", shape, data });
            // As transformers leaves it there: nothing reads it.
            let (name, data) = (name.replace("weight", "input_scale_ub"), 1200f32.to_le_bytes().to_vec());
            tensors.push(Entry { name, dtype: "F32", shape: vec![1], data });
        }
        tensors.push(Entry { name, dtype, shape, data: tensor.bytes().to_vec() });
    }
    let mut folder = Folder::default();
    let mut config: Value = json(&golden_dir(name).join("config.json"));
    config["quantization_config"] = value!({
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"],
    });
    folder.set_config(config.as_object().unwrap());
    folder.set("model.safetensors", folder::file_of(&tensors));
    folder
}

fn opened(folder: &Folder) -> warploom::Result<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    Checkpoint::open(dir.path())
}

fn on_cpu(checkpoint: &Checkpoint) -> Llama<Cpu> {
    Llama::new(checkpoint, Cpu::new(), 256).unwrap_or_else(|e| panic!("{e}"))
}

/// Codes and scales against a search over all codes; only the feed-forward matrices of inner layers are quantised.
#[test]
fn weights_are_quantised_row_by_row() {
    for name in NAMES {
        let (stored, quantised) = (open(name, false), open(name, true));
        for ((name, before), (_, after)) in weights(&stored).into_iter().zip(weights(&quantised)) {
            let inner = name.contains(".mlp.") && !name.ends_with("bias");
            if !inner || name.contains("layers.0.") || name.contains("layers.3.") {
                assert_eq!((after.dtype(), after.bytes()), (before.dtype(), before.bytes()), "{name}");
                continue;
            }
            let fp8 = after.fp8().expect("scales");
            assert_eq!((fp8.bound, fp8.scales.len()), (1200.0, before.rows()));
            let number = |i: usize| {
                let b = &before.bytes()[2 * i..][..2];
                match before.dtype() {
                    Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
                    _ => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                }
            };
            for (row, codes) in after.bytes().chunks(after.columns()).enumerate() {
                let numbers: Vec<f32> = (0..codes.len()).map(|i| number(row * codes.len() + i)).collect();
                let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
                let scale = fp8.scales[row];
                assert_eq!(scale, (most / 448.0).max(1.0 / (448.0 * 512.0)), "{name}");
                for (x, code) in numbers.iter().zip(codes) {
                    assert_eq!(*code, reference::nearest_e4m3(f64::from(x / scale)), "{name}: {x} / {scale}");
                }
            }
        }
    }
}

/// The logits are those of an f64 pass with the same quantising, to within a small part of what quantising changes.
#[test]
fn logits_are_those_of_the_formula() {
    for name in NAMES {
        let ids = &prompt(name)[..];
        let ids = &ids[..ids.len().min(8)];
        let compute = |fp8| {
            let checkpoint = open(name, fp8);
            let got = logits(&on_cpu(&checkpoint), ids, checkpoint.config.layers);
            (got, reference::logits(&checkpoint, ids))
        };
        let farthest = |a: &[Vec<f32>], b: &[Vec<f64>]| {
            let pairs = a.iter().flatten().zip(b.iter().flatten());
            pairs.map(|(a, b)| (f64::from(*a) - b).abs()).fold(0f64, f64::max)
        };
        let ((stored, stored_reference), (quantised, quantised_reference)) = (compute(false), compute(true));
        assert!(farthest(&stored, &stored_reference) < 1e-4, "{name}: the reference itself");
        let effect = farthest(&quantised, &stored_reference);
        let error = farthest(&quantised, &quantised_reference);
        // Where f32 and f64 stand on two sides of the middle between two codes, the next code is taken.
        assert!(error < 0.15 * effect, "{name}: {error} of {effect}");
    }
}

#[test]
fn a_checkpoint_in_fbgemm_fp8_is_the_quantised_one() {
    for name in NAMES {
        let ids = prompt(name);
        let quantised = logits(&on_cpu(&open(name, true)), &ids, 4);
        let from_disk = opened(&fbgemm(name)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(logits(&on_cpu(&from_disk), &ids, 4), quantised, "{name}");
        let [disk, load] = [&from_disk, &open(name, true)].map(|c| Footprint::of_checkpoint(c).unwrap());
        assert_eq!(disk, load, "{name}");
        assert!(disk.layer_bytes[1] < Footprint::of_checkpoint(&open(name, false)).unwrap().layer_bytes[1]);
    }
}

/// Scales in another type and shape, and a bound that cuts.
#[test]
fn scales_and_bound_are_read() {
    let name = "gqa_bf16";
    let checkpoint = open(name, true);
    let mut folder = fbgemm(name);
    let mut config: Value = serde_json::from_slice(&folder.files["config.json"]).unwrap();
    config["quantization_config"]["activation_scale_ub"] = value!(0.5);
    folder.set_config(config.as_object().unwrap());
    let cut = opened(&folder).unwrap();
    assert_eq!(cut.config.fp8_bound, Some(0.5));
    let ids = prompt(name);
    let bounded = logits(&on_cpu(&cut), &ids, 4);
    assert_ne!(bounded, logits(&on_cpu(&checkpoint), &ids, 4), "activations over 0.5 saturate");
    let want = reference::logits(&cut, &ids[..4]);
    let far =
        |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0f64, f64::max);
    assert!(bounded.iter().zip(&want).all(|(a, b)| far(a, b) < 0.02));

    let mut tensors = tensors_of(&folder);
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name.ends_with("weight_scale")) {
        let scales = tensor.data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        tensor.data = scales.flat_map(|scale| half::bf16::from_f32(scale).to_le_bytes()).collect();
        (tensor.dtype, tensor.shape) = ("BF16", vec![tensor.shape[0]]);
    }
    folder.set("model.safetensors", folder::file_of(&tensors));
    let rounded = opened(&folder).unwrap_or_else(|e| panic!("{e}"));
    let tensor = rounded.weight("model.layers.1.mlp.up_proj.weight", &[256, 128]).unwrap();
    let exact = checkpoint.weight("model.layers.1.mlp.up_proj.weight", &[256, 128]).unwrap();
    for (a, b) in tensor.fp8().unwrap().scales.iter().zip(&*exact.fp8().unwrap().scales) {
        assert_eq!(*a, half::bf16::from_f32(*b).to_f32());
    }
}

/// The tensors of a folder's one file.
fn tensors_of(folder: &Folder) -> Vec<Entry> {
    let file = safetensors::SafeTensors::deserialize(&folder.files["model.safetensors"]).unwrap();
    let mut entries = Vec::new();
    for (name, view) in file.tensors() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F8_E4M3 => "F8_E4M3",
            safetensors::Dtype::BF16 => "BF16",
            safetensors::Dtype::F16 => "F16",
            _ => "F32",
        };
        entries.push(Entry { name, dtype, shape: view.shape().to_vec(), data: view.data().to_vec() });
    }
    entries
}

/// Drafts, verification and batches have the same bits as plain decoding, under every instruction set.
#[test]
fn decoding_stays_exact() {
    for name in NAMES {
        let checkpoint = open(name, true);
        let prompt = prompt(name);
        let mut first = None;
        for isa in Isa::available() {
            let llama = Llama::new(&checkpoint, Cpu::with_isa(isa).unwrap(), 256).unwrap();
            let plain = run(&llama, vec![greedy(&prompt, 16)], 256).remove(0);
            let drafting = |exit_layer, draft| Request {
                policy: Some(Box::new(Fixed { plan: Plan { exit_layer, draft, threshold: 0.0 } })),
                ..greedy(&prompt, 16)
            };
            let requests = (1..4).map(|exit| drafting(exit, 2 * exit + 1)).collect();
            for got in run(&llama, requests, 256) {
                assert_eq!((&got.0.ids, &got.1), (&plain.0.ids, &plain.1), "{name} {isa:?}");
            }
            assert_eq!(first.get_or_insert_with(|| plain.1.clone()), &plain.1, "{name} {isa:?}");
        }
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let good = fbgemm("gqa_bf16");
    let refused = |what: &str, change: &dyn Fn(&mut Vec<Entry>), wanted: &str| {
        let mut folder = good.clone();
        let mut tensors = tensors_of(&folder);
        change(&mut tensors);
        folder.set("model.safetensors", folder::file_of(&tensors));
        let error = opened(&folder).and_then(|c| Llama::new(&c, Cpu::new(), 64)).err();
        let error = error.unwrap_or_else(|| panic!("{what} is taken")).to_string();
        assert!(wanted.split(" & ").all(|part| error.contains(part)), "{what}: {error}");
    };
    fn at<'t>(tensors: &'t mut [Entry], name: &str) -> &'t mut Entry {
        tensors.iter_mut().find(|t| t.name.ends_with(name)).unwrap()
    }
    const GATE: &str = "layers.1.mlp.gate_proj.weight";
    const SCALE: &str = "layers.1.mlp.gate_proj.weight_scale";
    refused("no scales", &|t| t.retain(|t| !t.name.ends_with(SCALE)), "gate_proj.weight & weight_scale");
    refused(
        "few scales",
        &|t| {
            let scales = at(t, SCALE);
            (scales.shape, scales.data) = (vec![255, 1], scales.data[..255 * 4].to_vec());
        },
        "gate_proj.weight_scale & [255, 1]",
    );
    for bad in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        refused(
            "a bad scale",
            &|t| at(t, SCALE).data[40..44].copy_from_slice(&bad.to_le_bytes()),
            "weight_scale & row 10",
        );
    }
    refused("NaN", &|t| at(t, GATE).data[77] = 0xff, "gate_proj.weight & NaN");
    refused("scales of integers", &|t| at(t, SCALE).dtype = "I32", "weight_scale & I32");
    refused(
        "attention",
        &|t| {
            let q = at(t, "layers.1.self_attn.q_proj.weight");
            (q.dtype, q.data) = ("F8_E4M3", vec![0x38; q.data.len() / 2]);
        },
        "q_proj.weight & modules_to_not_convert",
    );
    refused(
        "one of gate and up",
        &|t| {
            let gate = at(t, GATE);
            (gate.dtype, gate.data) = ("BF16", vec![0; 2 * gate.data.len()]);
        },
        "gate_proj & up_proj & layer 1",
    );

    // The same files without the word of config.json.
    let mut folder = good.clone();
    let mut config: Value = serde_json::from_slice(&folder.files["config.json"]).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    folder.set_config(config.as_object().unwrap());
    assert!(opened(&folder).unwrap_err().to_string().contains("quantization_config"));
    for (field, bad) in [
        ("activation_scale_ub", value!(-1200.0)),
        ("activation_scale_ub", value!("much")),
        ("modules_to_not_convert", value!(7)),
        ("modules_to_not_convert", value!([1])),
        ("quant_method", value!("compressed-tensors")),
        ("quant_method", value!(null)),
    ] {
        let mut folder = good.clone();
        let mut config: Value = serde_json::from_slice(&folder.files["config.json"]).unwrap();
        config["quantization_config"][field] = bad;
        folder.set_config(config.as_object().unwrap());
        assert!(opened(&folder).unwrap_err().to_string().contains(field), "{field}");
    }

    // Nothing to quantise, and what cannot be.
    let error = opened(&good).unwrap().set_fp8(true).unwrap_err().to_string();
    assert!(error.contains("--fp8") && error.contains("already"), "{error}");
    let error = opened(&Folder::single()).unwrap().set_fp8(true).unwrap_err().to_string();
    assert!(error.contains("--fp8") && error.contains("has 2"), "{error}");
    let mut folder = Folder::default();
    folder.set("config.json", std::fs::read(golden_dir("gqa_bf16").join("config.json")).unwrap());
    let weights = std::fs::read(golden_dir("gqa_bf16").join("model.safetensors")).unwrap();
    folder.set("model.safetensors", weights);
    let mut tensors = tensors_of(&folder);
    at(&mut tensors, GATE).data[6..8].copy_from_slice(&half::bf16::INFINITY.to_le_bytes());
    folder.set("model.safetensors", folder::file_of(&tensors));
    let mut checkpoint = opened(&folder).unwrap();
    checkpoint.set_fp8(true).unwrap();
    let error = Llama::new(&checkpoint, Cpu::new(), 64).err().unwrap().to_string();
    assert!(error.contains("gate_proj.weight") && error.contains("infinite or NaN"), "{error}");
}

/// The formulas' constants, at their edges.
#[test]
fn row_scales() {
    assert_eq!(fp8::row_scale(1200.0, fp8::ACTIVATION_BOUND), 1200.0 / 448.0);
    assert_eq!(fp8::row_scale(1e9, fp8::ACTIVATION_BOUND), 1200.0 / 448.0);
    assert_eq!(fp8::row_scale(1e-9, fp8::ACTIVATION_BOUND), 1.0 / (448.0 * 512.0));
}
