//! The launches at a model's shapes: that none of the entries is left out, and the counts by hand.

use std::sync::OnceLock;

use warploom::{
    Error,
    driver::Entry,
    kernels::{
        Dtype, FAMILIES,
        survey::{Bytes, Shapes, Survey, Surveyed},
    },
};

use super::{harness::gpu, shapes::SMALL as SHAPES};

fn entries() -> impl Iterator<Item = (&'static str, &'static Entry)> {
    FAMILIES.iter().flat_map(|family| family.entries.iter().map(|entry| (family.name, entry)))
}

/// All launches in bf16, and in f16.
fn launches(dtype: Dtype) -> &'static [Surveyed] {
    static LAUNCHES: [OnceLock<Vec<Surveyed>>; 2] = [OnceLock::new(), OnceLock::new()];
    LAUNCHES[usize::from(dtype == Dtype::F16)].get_or_init(|| {
        let mut survey = Survey::new(Shapes { dtype, ..SHAPES }).unwrap();
        let mut launch = |name: &str| survey.family(name).unwrap_or_else(|e| panic!("{e}"));
        FAMILIES.iter().flat_map(|family| launch(family.name)).collect()
    })
}

/// The one launch that is described so.
fn find<'l>(launches: &'l [Surveyed], entry: &str, what: &str) -> &'l Surveyed {
    let mut found =
        launches.iter().filter(|launch| launch.report.entry.starts_with(entry) && launch.what == what);
    let known: Vec<&str> = launches.iter().map(|launch| launch.what.as_str()).collect();
    let launch = found.next().unwrap_or_else(|| panic!("no {entry}, {what:?}, among {known:?}"));
    assert!(found.next().is_none(), "{entry}, {what:?}: more than one");
    launch
}

/// Bytes of device memory that were read and written, each sector once.
fn memory(launch: &Surveyed) -> Bytes {
    let counters = &launch.report.counters;
    let bytes = |sectors: Option<u64>| 32 * sectors.expect("sectors are counted");
    Bytes { read: bytes(counters.distinct_sectors_read), written: bytes(counters.distinct_sectors_written) }
}

/// A new kernel fails here until somebody says how it is launched.
#[test]
fn every_entry_is_launched() {
    if gpu().is_some() {
        return;
    }
    for (dtype, other) in [(Dtype::Bf16, "f16"), (Dtype::F16, "bf16")] {
        let launches = launches(dtype);
        let launched = |entry: &Entry| launches.iter().any(|launch| launch.report.entry == entry.name);
        let missing: Vec<&str> = entries()
            .filter(|(_, entry)| !launched(entry) && entry.name.split('_').all(|part| part != other))
            .map(|(_, entry)| entry.name)
            .collect();
        assert!(
            missing.is_empty(),
            "nothing in src/kernels/survey launches {missing:?} for {dtype}: give each a launch there; CONTRIBUTING.md, \"Adding a \
             kernel\", says how"
        );
        for launch in launches {
            let (entry, moved, needed) = (launch.report.entry, memory(launch), launch.compulsory);
            let family = entries().find(|(_, known)| known.name == entry).map(|(family, _)| family);
            assert_eq!(family, Some(launch.family), "{entry}");
            let least = moved.read >= needed.read && moved.written >= needed.written;
            assert!(least, "{entry}, {}: {needed:?} is more than was moved, {moved:?}", launch.what);
        }
    }
}

/// Two rows that see 64 keys each see 65 together.
#[test]
fn a_window_needs_its_own_keys() {
    let mut survey = Survey::new(Shapes { mask: "window:64".parse().unwrap(), prompt: 0, ..SHAPES }).unwrap();
    let launches = survey.family("attention_decode").unwrap_or_else(|e| panic!("{e}"));
    let launch = &launches[0];
    let Shapes { rows, heads, kv_heads, head_dim, .. } = SHAPES;
    assert_eq!(launch.what, "2 rows, 320 keys, 8 heads on 2 of 64, window:64");
    assert_eq!(launch.compulsory.read, (2 * (rows * heads * head_dim + 2 * 65 * kv_heads * head_dim)) as u64);
    assert!(memory(launch).read < 2 * launch.compulsory.read + 4096, "no page before the window is read");
}

/// By hand, in bytes of bf16.
#[test]
fn the_counts_are_those_of_the_shapes() {
    if gpu().is_some() {
        return;
    }
    let launches = launches(Dtype::Bf16);
    let exact = |entry: &str, what: &str, read: u64, written: u64| {
        let launch = find(launches, entry, what);
        let bytes = Bytes { read, written };
        assert_eq!(launch.compulsory, bytes, "{entry}, {what}: needed");
        assert_eq!(memory(launch), bytes, "{entry}, {what}: moved");
        assert!(launch.of_model, "{entry}, {what}");
        &launch.report.counters
    };
    // Weights once, the rows, the norm's weight, and 8 sums of squares a row; out.
    let qkv =
        exact("wl_linear_bf16_16", "q, k, v: 2 × 512 → 768", 768 * 1024 + 2 * 1024 + 1024 + 64, 2 * 1536);
    // Rows are multiplied sixteen at a time.
    assert_eq!((qkv.mma_flop, qkv.ctas), (2 * 16 * 768 * 512, 6));
    // The old residual is read and written; and 8 sums of squares a row.
    exact("wl_linear_bf16_16", "output: 2 × 512 → 512", 512 * 1024 + 2 * 1024 + 2 * 1024, 2 * 1024 + 64);
    let gate =
        exact("wl_linear", "gate, up: 2 × 512 → 2 · 1024", 2 * 1024 * 1024 + 2 * 1024 + 1024 + 64, 2 * 2048);
    assert_eq!(gate.mma_flop, 2 * 16 * 2048 * 512);
    exact("wl_linear", "head: 2 × 512 → 1000", 1000 * 1024 + 2 * 1024 + 1024 + 64, 2 * 4000);
    let prompt = exact("wl_gemm_bf16_64", "q, k, v: 64 × 512 → 768", 768 * 1024 + 64 * 1024, 64 * 1536);
    assert_eq!(prompt.mma_flop, 2 * 64 * 768 * 512);
    exact("wl_rms_norm_bf16", "64 × 512", 64 * 1024 + 1024, 64 * 1024);
    // Rows, tokens and positions, each in sectors of their own; and 8 sums of squares a row.
    exact("wl_embed_bf16", "64 × 512", 64 * 1024 + 2 * 256, 64 * 1024 + 64 * 32);

    // Keys and values of 320 positions, 2 heads of 64, in three splits of 128; beside them a row's indices.
    let attention =
        find(launches, "wl_attention_decode_bf16_64_split", "2 rows, 320 keys, 8 heads on 2 of 64");
    let needed = 2 * 320 * 2 * 128 + 2 * 1024;
    assert_eq!(attention.compulsory, Bytes { read: needed, written: 0 });
    assert!((needed..needed + 512).contains(&memory(attention).read), "{:?}", memory(attention));
    assert_eq!(memory(attention).written, 3 * 2 * 8 * (64 * 4 + 8), "parts and their sums");
    let combine = find(launches, "wl_attention_decode_bf16_combine", "2 rows, 320 keys, 8 heads on 2 of 64");
    assert_eq!(memory(combine).written, 2 * 1024);
    let sample = find(launches, "wl_sample", "verify: 2 × 1000, greedy");
    // A choice and a hash for each.
    assert_eq!(sample.compulsory, Bytes { read: 2 * 4000, written: 2 * 40 });
}

/// Of a model in fp8 the feed-forward products are launched in both types: its first and last layer keep theirs.
#[test]
fn fp8_launches_are_a_models_where_it_has_fp8() {
    let mut survey = Survey::new(Shapes { fp8: true, ..SHAPES }).unwrap();
    let mut launches = vec![];
    for family in ["linear", "gemm", "rms_norm", "quantize_fp8_rows"] {
        launches.extend(survey.family(family).unwrap_or_else(|e| panic!("{e}")));
    }
    // A byte a weight, four a scale; and the rows.
    let product = |rows: u64, inputs: u64, features: u64| features * (inputs + 4) + rows * (inputs + 4);
    let expected = [
        ("wl_linear_bf16_e4m3_16", "gate, up: 2 × 512 → 2 · 1024, e4m3", product(2, 512, 2048)),
        ("wl_linear_bf16_e4m3_16", "down: 2 × 1024 → 512, e4m3", product(2, 1024, 512) + 2 * 1024),
        ("wl_gemm_bf16_e4m3_64", "gate, up: 64 × 512 → 2 · 1024, e4m3", product(64, 512, 2048)),
        ("wl_gemm_bf16_e4m3_64", "down: 64 × 1024 → 512, e4m3", product(64, 1024, 512) + 64 * 1024),
        ("wl_rms_norm", "2 × 512, e4m3", 3 * 1024),
        ("wl_rms_norm", "64 × 512, e4m3", 65 * 1024),
        ("wl_quantize_fp8_rows", "2 × 1024", 2 * 2048),
        ("wl_quantize_fp8_rows", "64 × 1024", 64 * 2048),
    ];
    for (entry, what, read) in expected {
        let launch = find(&launches, entry, what);
        assert!(launch.of_model, "{entry}, {what}");
        assert_eq!(launch.compulsory.read, read, "{entry}, {what}: needed");
        // The last sectors of two rows' scales, and of the old residual, are not filled.
        let moved = memory(launch).read;
        assert!((read..read + 64).contains(&moved), "{entry}, {what}: {moved} of {read}");
        if let Some(stored) = what.strip_suffix(", e4m3").filter(|_| what.contains('→')) {
            assert!(find(&launches, &entry[..9], stored).of_model, "{stored}");
        }
    }
    let stored = self::launches(Dtype::Bf16);
    for launch in stored.iter().filter(|launch| launch.report.entry.contains("e4m3")) {
        assert!(!launch.of_model, "{}, {}", launch.report.entry, launch.what);
    }
}

#[test]
fn shapes_that_cannot_be_are_refused_at_once() {
    let refused = |shapes: Shapes| Survey::new(shapes).err().expect("a refusal");
    let argument = |shapes: Shapes, wanted: &str| {
        let error = refused(shapes).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    argument(Shapes { rows: 0, ..SHAPES }, "rows: 0; supported are 1 to 64");
    argument(Shapes { rows: 65, ..SHAPES }, "rows: 65");
    argument(Shapes { context: 1, ..SHAPES }, "context: 1; supported are 2, the rows, to 268435456");
    argument(Shapes { context: usize::MAX, ..SHAPES }, "context: ");
    argument(Shapes { prompt: usize::MAX, ..SHAPES }, "prompt: ");
    argument(Shapes { head_dim: 264, ..SHAPES }, "head_dim: 264");
    for large in [
        Shapes { context: 1 << 28, ..SHAPES },
        Shapes { vocab: 1 << 24, hidden: 1 << 20, ..SHAPES },
        Shapes { intermediate: usize::MAX / 4, ..SHAPES },
    ] {
        let error = refused(large);
        assert!(matches!(error, Error::Capacity { .. }), "{error}");
        assert!(error.to_string().contains("GiB of host memory"), "{error}");
    }
}
