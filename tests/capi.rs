//! The functions of C, as C calls them: what they compute is what the kernels of their names do, and what they are given wrong is refused.
#![cfg(feature = "capi")]

use std::{ffi::CStr, ptr};

use half::bf16;
use warploom::{
    capi::{abi::*, *},
    kernels::params::*,
    optimizer::{AdamW, Settings},
};

const ABI: &str = include_str!("../src/capi/abi.rs");

fn words() -> String {
    // SAFETY: a string of the library's, read before the next call.
    unsafe { CStr::from_ptr(wl_error()) }.to_str().unwrap().to_string()
}

fn ok(status: i32) {
    assert_eq!(status, WL_OK as i32, "{}", words());
}

/// A simulated device with a stream.
struct Rig {
    device: *mut WlDevice,
    stream: *mut WlStream,
}

impl Rig {
    fn new() -> Self {
        let (mut device, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: places for what is made.
        unsafe {
            ok(wl_device_open(c"sim".as_ptr(), &mut device));
            ok(wl_stream_create(device, &mut stream));
        }
        Rig { device, stream }
    }

    /// So many zeros.
    fn zeros(&self, bytes: usize) -> WlView {
        let mut view = WlView::default();
        // SAFETY: device and stream are there.
        unsafe {
            ok(wl_allocate(self.device, bytes as u64, &mut view));
            ok(wl_fill(self.stream, view, 0));
        }
        view
    }

    fn of<T: bytemuck::NoUninit>(&self, data: &[T]) -> WlView {
        let view = self.zeros(size_of_val(data));
        // SAFETY: as many bytes as the view has.
        unsafe { ok(wl_upload(self.stream, view, data.as_ptr().cast())) };
        view
    }

    fn read<T: bytemuck::Pod>(&self, view: WlView) -> Vec<T> {
        let mut data = vec![T::zeroed(); view.bytes as usize / size_of::<T>()];
        // SAFETY: as many bytes as the view has.
        unsafe { ok(wl_download(self.stream, data.as_mut_ptr().cast(), view)) };
        data
    }

    /// Rows of bf16.
    fn rows(&self, rows: usize, width: usize) -> WlMatrix {
        WlMatrix { view: self.zeros(2 * rows * width), stride: width as u64 }
    }

    fn floats(&self, rows: usize, width: usize) -> WlMatrix {
        WlMatrix { view: self.zeros(4 * rows * width), stride: width as u64 }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe {
            // The stream outlives its device.
            ok(wl_device_close(self.device));
            ok(wl_stream_destroy(self.stream));
        }
    }
}

/// Places of the views in a struct, by name.
fn views(of: &str) -> Vec<(String, usize)> {
    let (structs, _) = ABI.split_once("pub struct ").map(|_| (ABI, ())).unwrap();
    let fields = |name: &str| -> Vec<(String, String)> {
        let body = structs.split(&format!("pub struct {name} {{")).nth(1).expect("a struct of that name");
        let lines = body.split('}').next().unwrap().lines();
        let field = |line: &str| {
            let (name, kind) = line.trim().strip_prefix("pub ")?.trim_end_matches(',').split_once(": ")?;
            Some((name.to_string(), kind.to_string()))
        };
        lines.filter_map(field).collect()
    };
    let offset = |name: &str, field: &str| -> usize {
        let rest = ABI.split(&format!("[\"Offset of field: {name}::{field}\"]")).nth(1).expect("an offset");
        let number = rest.split("- ").nth(1).unwrap().split("usize").next().unwrap();
        number.parse().unwrap()
    };
    let mut found = vec![];
    let mut open = vec![(of.to_string(), of.to_string(), 0)];
    while let Some((path, name, base)) = open.pop() {
        for (field, kind) in fields(&name) {
            let (path, at) = (format!("{path}.{field}"), base + offset(&name, &field));
            match kind.as_str() {
                "WlView" => found.push((path, at)),
                "WlMatrix" | "WlPageTable" | "WlRowTable" | "WlRoundRows" => open.push((path, kind, at)),
                // The first of the projections.
                "[WlProjectionArgs; 3usize]" => open.push((path, "WlProjectionArgs".into(), at)),
                _ => {}
            }
        }
    }
    found
}

/// Calls a function as it should be called, and then in every wrong way: null pointers, another version, and each of its views null, short,
/// at an odd address.
fn attack<A: Copy>(
    rig: &Rig,
    name: &str,
    function: unsafe extern "C" fn(*const WlStream, *const A) -> i32,
    args: A,
) {
    // SAFETY: the memory is there; where it is not, nothing may be launched.
    let call = |args: &A| unsafe { function(rig.stream, args) };
    ok(call(&args));
    // SAFETY: the stream is there.
    unsafe { ok(wl_stream_synchronize(rig.stream)) };
    // SAFETY: null.
    unsafe {
        assert_eq!(function(ptr::null(), &args), WL_ERROR_NULL as i32);
        assert_eq!(words(), "stream is null");
        assert_eq!(function(rig.stream, ptr::null()), WL_ERROR_NULL as i32);
        assert_eq!(words(), "args is null");
    }
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = args;
        // SAFETY: within the struct, whose fields are numbers.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut changed).cast::<u8>().add(at), bytes.len())
        };
        changed
    };
    for version in [0_u32, 2, u32::MAX] {
        assert_eq!(call(&changed(0, &version.to_ne_bytes())), WL_ERROR_VERSION as i32);
        assert!(words().contains(&format!("version {version}")), "{}", words());
    }
    // SAFETY: an odd address is refused before it is read.
    let odd = unsafe { function(rig.stream, (&raw const args).cast::<u8>().wrapping_add(1).cast()) };
    assert_eq!(odd, WL_ERROR_ARGUMENT as i32, "{name}");
    let kind = std::any::type_name::<A>().rsplit("::").next().unwrap();
    let views = views(kind);
    assert!(!views.is_empty());
    for (view, at) in views {
        // SAFETY: a view of this struct.
        let there = unsafe { (&raw const args).cast::<u8>().add(at).cast::<WlView>().read_unaligned() };
        if there.address == 0 {
            continue;
        }
        let status = call(&changed(at, &0_u64.to_ne_bytes()));
        let fine = [WL_OK, WL_ERROR_NULL, WL_ERROR_ARGUMENT].contains(&(status as u32));
        assert!(fine, "{view} null: {status}, {}", words());
        let short = call(&changed(at + 8, &1_u64.to_ne_bytes()));
        assert_eq!(short, WL_ERROR_ARGUMENT as i32, "{view} of one byte");
        assert!(words().contains("bytes do not hold"), "{view}: {}", words());
        let address = there.address + 1;
        assert_eq!(
            call(&changed(at, &address.to_ne_bytes())),
            WL_ERROR_ARGUMENT as i32,
            "{view} at an odd address"
        );
        assert!(words().contains("not a multiple of"), "{view}: {}", words());
    }
    ok(call(&args));
    // SAFETY: the stream is there.
    unsafe { ok(wl_stream_synchronize(rig.stream)) };
}

#[test]
fn what_is_wrong_with_rows_is_refused() {
    let rig = &Rig::new();
    let (rows, width) = (2, 128);
    let (version, dtype, positions) = (WL_VERSION, WL_BF16, rig.zeros(4 * rows));
    let e4m3 = || WlMatrix { view: rig.zeros(rows * width), stride: width as u64 };
    let (rows_, width_) = (rows as u64, width as u64);
    let norm = WlRmsNormArgs {
        version,
        dtype,
        y_dtype: dtype,
        rows: rows_,
        width: width_,
        eps: 1e-5,
        x: rig.rows(rows, width),
        residual: rig.rows(rows, width),
        new_residual: rig.rows(rows, width),
        weight: rig.zeros(2 * width),
        y: rig.rows(rows, width),
        stats: rig.zeros(4 * rows * 2),
        positions,
        ..Default::default()
    };
    attack(rig, "rms_norm", wl_rms_norm, norm);
    let quantised = WlRmsNormArgs { y_dtype: WL_E4M3, y: e4m3(), y_scales: rig.zeros(4 * rows), ..norm };
    attack(rig, "rms_norm, e4m3", wl_rms_norm, quantised);
    let embed = WlEmbedArgs {
        version,
        dtype,
        rows: rows_,
        width: width_,
        vocabulary: 5,
        table: rig.rows(5, width),
        tokens: rig.zeros(4 * rows),
        positions,
        out: rig.rows(rows, width),
        stats: rig.zeros(4 * rows * 2),
    };
    attack(rig, "embed", wl_embed, embed);
    let swiglu = WlSwigluArgs {
        version,
        dtype,
        out_dtype: dtype,
        rows: rows_,
        width: width_,
        gate: rig.rows(rows, width),
        up: rig.rows(rows, width),
        out: rig.rows(rows, width),
        positions,
        ..Default::default()
    };
    attack(rig, "swiglu", wl_swiglu, swiglu);
    let quantised =
        WlSwigluArgs { out_dtype: WL_E4M3, out: e4m3(), out_scales: rig.zeros(4 * rows), ..swiglu };
    attack(rig, "swiglu, e4m3", wl_swiglu, quantised);
    let quantise = WlQuantizeFp8RowsArgs {
        version,
        dtype,
        rows: rows_,
        width: width_,
        x: rig.rows(rows, width),
        q: e4m3(),
        scales: rig.zeros(4 * rows),
        positions,
        bound: 1200.0,
        reserved: 0,
    };
    attack(rig, "quantize_fp8_rows", wl_quantize_fp8_rows, quantise);
    for dtype in [WL_E4M3 + 1, u32::MAX] {
        let call = |args: &WlEmbedArgs| {
            // SAFETY: nothing is launched.
            unsafe { wl_embed(rig.stream, args) }
        };
        assert_eq!(call(&WlEmbedArgs { dtype, ..embed }), WL_ERROR_ARGUMENT as i32);
        assert!(words().starts_with("dtype: "), "{}", words());
        assert_eq!(call(&WlEmbedArgs { rows: u64::MAX, ..embed }), WL_ERROR_ARGUMENT as i32);
    }
}

fn layout() -> WlPageLayout {
    let (pages, page_size, kv_heads, head_dim) = (3, 16, 2, 64);
    WlPageLayout {
        pages,
        page_size,
        kv_heads,
        head_dim,
        page_stride: page_size * kv_heads * head_dim,
        head_stride: page_size * head_dim,
        slot_stride: head_dim,
    }
}

#[test]
fn what_is_wrong_with_attention_is_refused() {
    let rig = &Rig::new();
    let (version, dtype, heads, head_dim) = (WL_VERSION, WL_BF16, 4_usize, 64_usize);
    let pages = || rig.zeros(2 * 3 * 16 * 2 * head_dim);
    let table = WlPageTable { view: rig.of(&[0, 1, 2, 0]), sequences: 2, stride: 2 };
    let rope = WlRopeAppendArgs {
        version,
        dtype,
        rows: 2,
        heads: heads as u64,
        qkv: rig.rows(2, (heads + 4) * head_dim),
        positions: rig.of(&[0, 3]),
        slots: rig.of(&[0, 1]),
        frequencies: rig.zeros(4 * head_dim / 2),
        layout: layout(),
        k: pages(),
        v: pages(),
        table,
        magnitude: 1.0,
        reserved: 0,
    };
    attack(rig, "rope_append", wl_rope_append, rope);
    let mut decode = WlAttentionDecodeArgs {
        version,
        dtype,
        tokens: 2,
        sequences: 2,
        heads: heads as u64,
        max_rows: 1,
        max_keys: 200,
        scale: 0.125,
        softcap: 0.0,
        q: rig.rows(2, heads * head_dim),
        out: rig.rows(2, heads * head_dim),
        lse: rig.zeros(4 * heads * 2),
        layout: layout(),
        k: pages(),
        v: pages(),
        table,
        slots: rig.of(&[0, 1]),
        lengths: rig.of(&[5, 20]),
        offsets: rig.of(&[0, 1, 2]),
        positions: rig.of(&[4, 19]),
        documents: rig.of(&[0, 0]),
        tree: rig.of(&[u64::MAX, u64::MAX]),
        sinks: rig.zeros(4 * heads),
        mask: WlMask { pattern: WL_CAUSAL, keys: 0, prefix: 0, reserved: 0 },
        scratch: WlView::default(),
    };
    let mut bytes = 0;
    // SAFETY: all pointers point to what they should.
    unsafe {
        ok(wl_attention_decode_scratch(rig.stream, &decode, &mut bytes));
        assert_eq!(wl_attention_decode_scratch(rig.stream, &decode, ptr::null_mut()), WL_ERROR_NULL as i32);
        let mut again = 0;
        let nothing = WlAttentionDecodeArgs {
            q: WlMatrix { stride: decode.q.stride, ..Default::default() },
            out: WlMatrix { stride: decode.out.stride, ..Default::default() },
            lengths: WlView::default(),
            ..decode
        };
        ok(wl_attention_decode_scratch(rig.stream, &nothing, &mut again));
        assert!(bytes > 0 && again == bytes);
        assert_eq!(wl_attention_decode(rig.stream, &decode), WL_ERROR_ARGUMENT as i32, "without scratch");
    }
    decode.scratch = rig.zeros(bytes as usize);
    attack(rig, "attention_decode", wl_attention_decode, decode);
    let &WlAttentionDecodeArgs {
        q,
        out,
        lse,
        k,
        v,
        slots,
        lengths,
        offsets,
        positions,
        documents,
        sinks,
        ..
    } = &decode;
    let prefill = WlAttentionPrefillArgs {
        version,
        dtype,
        tokens: 2,
        sequences: 2,
        heads: heads as u64,
        max_rows: 1,
        max_keys: 32,
        scale: 0.125,
        softcap: 0.0,
        q,
        out,
        lse,
        layout: layout(),
        k,
        v,
        table,
        slots,
        lengths,
        offsets,
        positions,
        documents,
        sinks,
        mask: decode.mask,
    };
    attack(rig, "attention_prefill", wl_attention_prefill, prefill);
    for mask in [
        WlMask { pattern: WL_FULL + 1, ..decode.mask },
        WlMask { pattern: WL_WINDOW, keys: 0, ..decode.mask },
        WlMask { pattern: WL_CHUNK, keys: -4, ..decode.mask },
        WlMask { prefix: -1, ..decode.mask },
    ] {
        // SAFETY: nothing is launched.
        let status = unsafe { wl_attention_decode(rig.stream, &WlAttentionDecodeArgs { mask, ..decode }) };
        assert_eq!(status, WL_ERROR_ARGUMENT as i32, "{mask:?}");
    }
}

#[test]
fn what_is_wrong_with_products_is_refused() {
    let rig = &Rig::new();
    let (version, dtype, rows, inputs, features) = (WL_VERSION, WL_BF16, 2_usize, 256_usize, 64_usize);
    let projection = WlProjectionArgs {
        weight: rig.rows(features, inputs),
        bias: rig.zeros(2 * features),
        features: features as u64,
        ..Default::default()
    };
    let mut linear = WlLinearArgs {
        version,
        dtype,
        rows: rows as u64,
        inputs: inputs as u64,
        x: rig.rows(rows, inputs),
        positions: rig.zeros(4 * rows),
        norm_weight: rig.zeros(2 * inputs),
        norm_stats: rig.zeros(4 * rows * inputs / 64),
        norm_eps: 1e-5,
        epilogue: WL_LINEAR_ADD,
        projections: [projection, Default::default(), Default::default()],
        out: rig.rows(rows, features),
        out_stats: rig.zeros(4 * rows),
        ..Default::default()
    };
    let mut bytes = 0;
    // SAFETY: all pointers point to what they should.
    unsafe { ok(wl_linear_scratch(rig.stream, &linear, &mut bytes)) };
    linear.scratch = if bytes > 0 { rig.zeros(bytes as usize) } else { WlView::default() };
    attack(rig, "linear", wl_linear, linear);
    let gemm = WlGemmArgs {
        version,
        dtype,
        rows: rows as u64,
        inputs: inputs as u64,
        x: linear.x,
        epilogue: WL_LINEAR_ADD,
        projections: linear.projections,
        out: linear.out,
        out_stats: linear.out_stats,
        ..Default::default()
    };
    attack(rig, "gemm", wl_gemm, gemm);
    // SAFETY: nothing is launched.
    unsafe {
        assert_eq!(wl_gemm(rig.stream, &WlGemmArgs { epilogue: 9, ..gemm }), WL_ERROR_ARGUMENT as i32);
        assert_eq!(
            wl_gemm(rig.stream, &WlGemmArgs { projections: Default::default(), ..gemm }),
            WL_ERROR_ARGUMENT as i32
        );
    }
}

#[test]
fn what_is_wrong_with_rounds_and_training_is_refused() {
    let rig = &Rig::new();
    let (version, slots, vocab, steps) = (WL_VERSION, 2_usize, 40_usize, 3_usize);
    let table = |rows: usize| WlRowTable {
        tokens: rig.zeros(4 * rows),
        positions: rig.zeros(4 * rows),
        sequences: rig.zeros(4 * rows),
    };
    let round = WlRoundRows {
        steps: steps as u64,
        draft_rows: slots as u64,
        verify_rows: 4,
        draft: table(steps * slots),
        verify: table(4),
    };
    let states = rig.zeros(slots * size_of::<WlSequence>());
    let begin = WlRoundBeginArgs {
        version,
        reserved: 0,
        slots: slots as u64,
        plans: rig.zeros(slots * size_of::<WlPlan>()),
        states,
        round,
        draft_lengths: rig.zeros(4 * slots),
        verify_lengths: rig.zeros(4 * slots),
    };
    attack(rig, "round_begin", wl_round_begin, begin);
    let mut bytes = 0;
    // SAFETY: a place for a number.
    unsafe {
        ok(wl_sample_scratch(4, vocab as u64, &mut bytes));
        assert_eq!(wl_sample_scratch(4, vocab as u64, ptr::null_mut()), WL_ERROR_NULL as i32);
    }
    let seen = WlMatrix { view: rig.zeros(4 * slots * 2), stride: 2 };
    let sample = WlSampleArgs {
        version,
        mode: WL_SAMPLE_VERIFY,
        rows: 4,
        vocab: vocab as u64,
        slots: slots as u64,
        logits: rig.floats(4, vocab),
        round,
        states,
        seen,
        choices: rig.zeros(4 * size_of::<WlChoice>()),
        probabilities: rig.floats(4, vocab),
        hashes: rig.zeros(8 * 4),
        scratch: rig.zeros(bytes as usize),
        ..Default::default()
    };
    attack(rig, "sample", wl_sample, sample);
    // SAFETY: nothing is launched.
    unsafe {
        assert_eq!(wl_sample(rig.stream, &WlSampleArgs { mode: 2, ..sample }), WL_ERROR_ARGUMENT as i32);
        assert_eq!(
            wl_sample(rig.stream, &WlSampleArgs { first_row: u64::MAX, ..sample }),
            WL_ERROR_ARGUMENT as i32
        );
    }
    let accept = WlAcceptArgs {
        version,
        slots: slots as u64,
        vocab: vocab as u64,
        verify_rows: 4,
        states,
        rounds: rig.zeros(slots * size_of::<WlRound>()),
        seen,
        draft_choices: rig.zeros(slots * WL_MAX_DRAFT as usize * size_of::<WlChoice>()),
        verify_choices: sample.choices,
        draft_logits: rig.floats(2 * slots, vocab),
        draft_steps: 2,
        draft_rows: slots as u64,
        draft_step_stride: (slots * vocab) as u64,
        verify_logits: rig.floats(4, vocab),
        ..Default::default()
    };
    attack(rig, "accept", wl_accept, accept);
    let count = 100_usize;
    // SAFETY: a place for a number.
    unsafe { ok(wl_adamw_scratch(count as u64, &mut bytes)) };
    let adamw = WlAdamwArgs {
        version,
        gradient_dtype: WL_F32,
        count: count as u64,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        weights: rig.zeros(4 * count),
        gradients: rig.zeros(4 * count),
        m: rig.zeros(4 * count),
        v: rig.zeros(4 * count),
        copy: rig.zeros(2 * count),
        step: rig.of(&[0.1_f32, 1.0, 1.0, 1.0]),
        statistics: rig.zeros(size_of::<WlAdamwStatistics>()),
        scratch: rig.zeros(bytes as usize),
    };
    attack(rig, "adamw", wl_adamw, adamw);
    // SAFETY: nothing is launched.
    unsafe {
        assert_eq!(wl_adamw(rig.stream, &WlAdamwArgs { beta2: 1.5, ..adamw }), WL_ERROR_ARGUMENT as i32)
    };
}

#[test]
fn devices_streams_and_memory() {
    let rig = Rig::new();
    assert_eq!(wl_version(), WL_VERSION);
    // SAFETY: a string of the library's.
    assert_eq!(unsafe { CStr::from_ptr(wl_release()) }.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    let null = WL_ERROR_NULL as i32;
    let mut device = ptr::null_mut();
    let mut properties = WlProperties { version: WL_VERSION, ..Default::default() };
    let view = rig.of(&[1_u32, 2, 3, 4]);
    let mut stream = ptr::null_mut();
    // SAFETY: null, or what it should be.
    unsafe {
        assert_eq!(wl_device_open(ptr::null(), &mut device), null);
        assert_eq!(wl_device_open(c"sim".as_ptr(), ptr::null_mut()), null);
        assert_eq!(wl_device_open(c"tpu".as_ptr(), &mut device), WL_ERROR_ARGUMENT as i32);
        assert_eq!(wl_device_open(c"cuda:4000".as_ptr(), &mut device), WL_ERROR_DEVICE as i32);
        assert!(device.is_null());
        assert_eq!(wl_device_close(ptr::null_mut()), null);
        assert_eq!(wl_device_load(ptr::null()), null);
        ok(wl_device_load(rig.device));
        assert_eq!(wl_device_properties(rig.device, ptr::null_mut()), null);
        ok(wl_device_properties(rig.device, &mut properties));
        assert!(CStr::from_ptr(properties.name.as_ptr()).to_str().unwrap().starts_with("simulated"));
        properties.version = 7;
        assert_eq!(wl_device_properties(rig.device, &mut properties), WL_ERROR_VERSION as i32);
        assert_eq!(wl_stream_create(ptr::null(), &mut stream), null);
        assert_eq!(wl_stream_create(rig.device, ptr::null_mut()), null);
        assert_eq!(wl_stream_of_cuda(rig.device, ptr::null_mut(), &mut stream), WL_ERROR_DEVICE as i32);
        assert_eq!(wl_stream_destroy(ptr::null_mut()), null);
        assert_eq!(wl_stream_synchronize(ptr::null()), null);
        assert_eq!(wl_allocate(rig.device, 16, ptr::null_mut()), null);
        let mut large = WlView::default();
        assert_eq!(wl_allocate(rig.device, u64::MAX, &mut large), WL_ERROR_MEMORY as i32);
        assert_eq!(wl_free(rig.device, 0), null);
        assert_eq!(wl_free(rig.device, view.address + 16), WL_ERROR_ARGUMENT as i32);
        assert_eq!(wl_upload(rig.stream, view, ptr::null()), null);
        assert_eq!(wl_download(rig.stream, ptr::null_mut(), view), null);
        assert_eq!(wl_fill(rig.stream, WlView::default(), 0), null);
        let half = WlView { bytes: 8, ..view };
        assert_eq!(wl_copy(rig.stream, view, half), WL_ERROR_ARGUMENT as i32, "they overlap");
        let other = rig.zeros(16);
        assert_eq!(wl_copy(rig.stream, view, WlView { bytes: 8, ..other }), WL_ERROR_ARGUMENT as i32);
        ok(wl_copy(rig.stream, view, other));
        assert_eq!(rig.read::<u32>(other), [1, 2, 3, 4]);
        let beyond = WlView { bytes: 1 << 20, ..view };
        assert_eq!(wl_fill(rig.stream, beyond, 1), WL_ERROR_DEVICE as i32);
        ok(wl_free(rig.device, view.address));
        assert_eq!(wl_free(rig.device, view.address), WL_ERROR_ARGUMENT as i32);
        assert_eq!(wl_fill(rig.stream, view, 1), WL_ERROR_DEVICE as i32, "it is gone");
    }
    // Each thread has words of its own.
    assert!(!words().is_empty());
    assert_eq!(std::thread::spawn(words).join().unwrap(), "");
}

/// Numbers between −1 and 1 of bf16, other ones with each seed.
fn numbers(count: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bf16::from_f32(state as f32 / (1u64 << 31) as f32 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

fn matrix(view: WlView, width: usize) -> WlMatrix {
    WlMatrix { view, stride: width as u64 }
}

fn assert_near(what: &str, got: &[bf16], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got.to_f64() - want).abs();
        assert!(error <= 0.01 * want.abs() + 1e-3, "{what}: element {i} is {got}, not {want}");
    }
}

/// Which field is which argument, of kernels of rows: none may stand for another.
#[test]
fn rows_are_what_the_kernels_make_of_them() {
    let rig = &Rig::new();
    let (version, dtype, rows, width) = (WL_VERSION, WL_BF16, 2_usize, 64_usize);
    let (x, y) = (numbers(rows * width, 1), numbers(rows * width, 2));
    let weight = numbers(width, 3);
    let at = |of: &[bf16], i: usize| of[i].to_f64();
    let sizes = (rows as u64, width as u64);
    let out = || rig.zeros(2 * rows * width);

    let norm = WlRmsNormArgs {
        version,
        dtype,
        y_dtype: dtype,
        rows: sizes.0,
        width: sizes.1,
        eps: 0.5,
        x: matrix(rig.of(&x), width),
        residual: matrix(rig.of(&y), width),
        new_residual: matrix(out(), width),
        weight: rig.of(&weight),
        y: matrix(out(), width),
        stats: rig.zeros(4 * rows),
        ..Default::default()
    };
    // SAFETY: the memory is there, here and below.
    unsafe { ok(wl_rms_norm(rig.stream, &norm)) };
    let sums: Vec<f64> = (0..rows * width).map(|i| at(&x, i) + at(&y, i)).collect();
    assert_near("residual", &rig.read(norm.new_residual.view), &sums);
    let squares: Vec<f64> = sums.chunks(width).map(|row| row.iter().map(|h| h * h).sum()).collect();
    let normed =
        |i: usize| sums[i] / (squares[i / width] / width as f64 + 0.5).sqrt() * at(&weight, i % width);
    assert_near("y", &rig.read(norm.y.view), &(0..rows * width).map(normed).collect::<Vec<_>>());
    for (got, want) in rig.read::<f32>(norm.stats).iter().zip(&squares) {
        assert!((f64::from(*got) - want).abs() < 0.02 * want, "{got} is not {want}");
    }

    let swiglu = WlSwigluArgs {
        version,
        dtype,
        out_dtype: dtype,
        rows: sizes.0,
        width: sizes.1,
        gate: norm.x,
        up: norm.residual,
        out: matrix(out(), width),
        ..Default::default()
    };
    // SAFETY: as above.
    unsafe { ok(wl_swiglu(rig.stream, &swiglu)) };
    let product = |i: usize| at(&x, i) / (1.0 + (-at(&x, i)).exp()) * at(&y, i);
    assert_near("swiglu", &rig.read(swiglu.out.view), &(0..rows * width).map(product).collect::<Vec<_>>());

    let embed = WlEmbedArgs {
        version,
        dtype,
        rows: sizes.0,
        width: sizes.1,
        vocabulary: sizes.0,
        table: norm.x,
        tokens: rig.of(&[1, 0]),
        out: matrix(out(), width),
        ..Default::default()
    };
    // SAFETY: as above.
    unsafe { ok(wl_embed(rig.stream, &embed)) };
    assert_eq!(rig.read::<bf16>(embed.out.view), [&x[width..], &x[..width]].concat());

    let quantise = WlQuantizeFp8RowsArgs {
        version,
        dtype,
        rows: sizes.0,
        width: sizes.1,
        x: norm.x,
        q: matrix(rig.zeros(rows * width), width),
        scales: rig.zeros(4 * rows),
        bound: 0.25,
        ..Default::default()
    };
    // SAFETY: as above.
    unsafe { ok(wl_quantize_fp8_rows(rig.stream, &quantise)) };
    assert_eq!(rig.read::<f32>(quantise.scales), [0.25 / 448.0; 2], "the bound is less than the largest");
    let codes = rig.read::<u8>(quantise.q.view);
    assert!(codes.iter().zip(&x).all(|(code, x)| code >> 7 == (x.to_bits() >> 15) as u8));
    assert!(codes.iter().any(|code| code & 0x7f == 0x7e));
}

#[test]
fn products_are_what_the_kernels_make_of_them() {
    let rig = &Rig::new();
    let (version, dtype, rows, inputs) = (WL_VERSION, WL_BF16, 2_usize, 128_usize);
    let x = numbers(rows * inputs, 1);
    // Two projections of 24 and 16 features, the second ahead of the first in out.
    let parts = [(24_usize, 16_usize, 2), (16, 0, 3)].map(|(features, column, seed)| {
        (features, column, numbers(features * inputs, seed), numbers(features, 10 * seed))
    });
    let projection =
        |(features, column, weight, bias): &(usize, usize, Vec<bf16>, Vec<bf16>)| WlProjectionArgs {
            weight: matrix(rig.of(weight), inputs),
            bias: rig.of(bias),
            features: *features as u64,
            column: *column as u64,
            ..Default::default()
        };
    let projections = [projection(&parts[0]), projection(&parts[1]), Default::default()];
    let mut want = vec![0.0; rows * 40];
    for (features, column, weight, bias) in &parts {
        for row in 0..rows {
            for n in 0..*features {
                let product = |k: usize| x[row * inputs + k].to_f64() * weight[n * inputs + k].to_f64();
                want[row * 40 + column + n] = (0..inputs).map(product).sum::<f64>() + bias[n].to_f64();
            }
        }
    }
    let linear = WlLinearArgs {
        version,
        dtype,
        rows: rows as u64,
        inputs: inputs as u64,
        x: matrix(rig.of(&x), inputs),
        epilogue: WL_LINEAR_STORE,
        projections,
        out: matrix(rig.zeros(2 * rows * 40), 40),
        ..Default::default()
    };
    let mut bytes = 0;
    // SAFETY: the memory is there.
    unsafe {
        ok(wl_linear_scratch(rig.stream, &linear, &mut bytes));
        let scratch = if bytes > 0 { rig.zeros(bytes as usize) } else { WlView::default() };
        ok(wl_linear(rig.stream, &WlLinearArgs { scratch, ..linear }));
    }
    assert_near("linear", &rig.read(linear.out.view), &want);
    let gemm = WlGemmArgs {
        version,
        dtype,
        rows: rows as u64,
        inputs: inputs as u64,
        x: linear.x,
        epilogue: WL_LINEAR_STORE,
        projections,
        out: matrix(rig.zeros(2 * rows * 40), 40),
        ..Default::default()
    };
    // SAFETY: the memory is there.
    unsafe { ok(wl_gemm(rig.stream, &gemm)) };
    assert_near("gemm", &rig.read(gemm.out.view), &want);
}

/// Keys and values come to their pages, and both attentions find them there: window, softcap and sinks in their places.
#[test]
fn attention_is_what_the_kernels_make_of_it() {
    let rig = &Rig::new();
    let (version, dtype, heads, kv_heads, d, keys) =
        (WL_VERSION, WL_BF16, 4_usize, 2_usize, 64_usize, 20_usize);
    let width = (heads + 2 * kv_heads) * d;
    let qkv = numbers(keys * width, 5);
    let (k, v) = (rig.zeros(2 * 3 * 16 * kv_heads * d), rig.zeros(2 * 3 * 16 * kv_heads * d));
    // The last page first.
    let table = WlPageTable { view: rig.of(&[2, 0]), sequences: 1, stride: 2 };
    let positions: Vec<i32> = (0..keys as i32).collect();
    let frequency = |i: usize| 1.0 / 100f64.powf(i as f64 / (d / 2) as f64);
    let frequencies: Vec<f32> = (0..d / 2).map(|i| frequency(i) as f32).collect();
    let rope = WlRopeAppendArgs {
        version,
        dtype,
        rows: keys as u64,
        heads: heads as u64,
        qkv: matrix(rig.of(&qkv), width),
        positions: rig.of(&positions),
        slots: rig.of(&vec![0; keys]),
        frequencies: rig.of(&frequencies),
        layout: layout(),
        k,
        v,
        table,
        magnitude: 0.5,
        reserved: 0,
    };
    // SAFETY: the memory is there.
    unsafe { ok(wl_rope_append(rig.stream, &rope)) };
    let rotated = |row: usize, head: usize| -> Vec<f64> {
        let x = |i: usize| qkv[row * width + head * d + i].to_f64();
        let turn = |i: usize| (row as f64 * frequency(i)).sin_cos();
        let low = (0..d / 2).map(|i| 0.5 * (x(i) * turn(i).1 - x(i + d / 2) * turn(i).0));
        let high = (0..d / 2).map(|i| 0.5 * (x(i + d / 2) * turn(i).1 + x(i) * turn(i).0));
        low.chain(high).collect()
    };
    let place = |j: usize, head: usize| (([2, 0][j / 16] * kv_heads + head) * 16 + j % 16) * d;
    let (all_k, all_v) = (rig.read::<bf16>(k), rig.read::<bf16>(v));
    for j in [0, 7, 19] {
        assert_near("k", &all_k[place(j, 1)..][..d], &rotated(j, heads + 1));
        assert_eq!(all_v[place(j, 1)..][..d], qkv[j * width + (heads + kv_heads + 1) * d..][..d]);
    }

    let sinks: Vec<f32> = (0..heads).map(|head| head as f32 / 2.0).collect();
    let out = || matrix(rig.zeros(2 * heads * d), heads * d);
    let q =
        WlView { address: rope.qkv.view.address + (2 * (keys - 1) * width) as u64, bytes: 2 * width as u64 };
    let decode = WlAttentionDecodeArgs {
        version,
        dtype,
        tokens: 1,
        sequences: 1,
        heads: heads as u64,
        max_rows: 1,
        max_keys: 32,
        scale: 0.7,
        softcap: 2.0,
        q: matrix(q, width),
        out: out(),
        lse: rig.zeros(4 * heads),
        layout: layout(),
        k,
        v,
        table,
        lengths: rig.of(&[keys as i32]),
        offsets: rig.of(&[0, 1]),
        sinks: rig.of(&sinks),
        mask: WlMask { pattern: WL_WINDOW, keys: 6, prefix: 2, reserved: 0 },
        ..Default::default()
    };
    let prefill = WlAttentionPrefillArgs {
        version,
        dtype,
        tokens: 1,
        sequences: 1,
        heads: heads as u64,
        max_rows: 1,
        max_keys: 32,
        scale: 0.7,
        softcap: 2.0,
        q: decode.q,
        out: out(),
        lse: rig.zeros(4 * heads),
        layout: layout(),
        k,
        v,
        table,
        lengths: decode.lengths,
        offsets: decode.offsets,
        sinks: decode.sinks,
        mask: decode.mask,
        ..Default::default()
    };
    // SAFETY: the memory is there; one part of keys needs no scratch.
    unsafe {
        ok(wl_attention_decode(rig.stream, &decode));
        ok(wl_attention_prefill(rig.stream, &prefill));
    }
    let (mut want, mut lse) = (vec![], vec![]);
    for (head, sink) in sinks.iter().enumerate() {
        let (q, kv) = (rotated(keys - 1, head), head / (heads / kv_heads));
        let seen: Vec<usize> = (0..2).chain(keys - 6..keys).collect();
        let score = |j: usize| {
            let dot: f64 = (0..d).map(|i| q[i] * all_k[place(j, kv) + i].to_f64()).sum();
            2.0 * (0.7 * dot / 2.0).tanh()
        };
        let sum = seen.iter().map(|j| score(*j).exp()).sum::<f64>() + f64::from(*sink).exp();
        let value =
            |i: usize| seen.iter().map(|j| score(*j).exp() / sum * all_v[place(*j, kv) + i].to_f64()).sum();
        want.extend((0..d).map(|i| -> f64 { value(i) }));
        lse.push(sum.ln());
    }
    for (what, out, logs) in
        [("decode", decode.out.view, decode.lse), ("prefill", prefill.out.view, prefill.lse)]
    {
        for (got, want) in rig.read::<bf16>(out).iter().zip(&want) {
            assert!((got.to_f64() - want).abs() < 0.01, "{what}: {got} is not {want}");
        }
        for (got, want) in rig.read::<f32>(logs).iter().zip(&lse) {
            assert!((f64::from(*got) - want).abs() < 0.02, "{what}: ln of the sum is {got}, not {want}");
        }
    }
}

/// A plain step of one sequence: what is likeliest is chosen, and the round tells of it.
#[test]
fn a_round_is_what_the_kernels_make_of_it() {
    let rig = &Rig::new();
    let (version, vocab) = (WL_VERSION, 40_usize);
    let table = |rows: usize| WlRowTable {
        tokens: rig.zeros(4 * rows),
        positions: rig.zeros(4 * rows),
        sequences: rig.zeros(4 * rows),
    };
    let round = WlRoundRows { steps: 1, draft_rows: 1, verify_rows: 2, draft: table(1), verify: table(2) };
    let state =
        WlSequence { token: 5, length: 9, remaining: 4, verify_row: -1, ..bytemuck::Zeroable::zeroed() };
    let states = rig.of(&[state]);
    let plan =
        WlPlan { verify_row: 1, draft_row: 0, asked: 0, exit_layer: 3, threshold: 0.0, verify_group: 0 };
    let begin = WlRoundBeginArgs {
        version,
        slots: 1,
        plans: rig.of(&[plan]),
        states,
        round,
        verify_lengths: rig.zeros(4),
        ..Default::default()
    };
    let mut logits = vec![0.0_f32; 2 * vocab];
    logits[vocab + 17] = 3.0;
    let mut bytes = 0;
    // SAFETY: the memory is there.
    let accept = unsafe {
        ok(wl_round_begin(rig.stream, &begin));
        assert_eq!(rig.read::<i32>(round.verify.tokens), [0, 5]);
        assert_eq!(rig.read::<i32>(round.verify.positions), [-1, 9]);
        assert_eq!(rig.read::<i32>(begin.verify_lengths), [10]);
        ok(wl_sample_scratch(2, vocab as u64, &mut bytes));
        let sample = WlSampleArgs {
            version,
            mode: WL_SAMPLE_VERIFY,
            rows: 2,
            vocab: vocab as u64,
            slots: 1,
            logits: matrix(rig.of(&logits), vocab),
            round,
            states,
            choices: rig.zeros(2 * size_of::<WlChoice>()),
            scratch: rig.zeros(bytes as usize),
            ..Default::default()
        };
        ok(wl_sample(rig.stream, &sample));
        let accept = WlAcceptArgs {
            version,
            slots: 1,
            vocab: vocab as u64,
            verify_rows: 2,
            states,
            rounds: rig.zeros(size_of::<WlRound>()),
            draft_choices: rig.zeros(WL_MAX_DRAFT as usize * size_of::<WlChoice>()),
            verify_choices: sample.choices,
            ..Default::default()
        };
        ok(wl_accept(rig.stream, &accept));
        accept
    };
    let told = rig.read::<WlRound>(accept.rounds)[0];
    assert_eq!((told.emitted, told.ids[0], told.length, told.exit_layer), (1, 17, 10, 3));
    assert_eq!(rig.read::<WlSequence>(states)[0].remaining, 3);
}

#[test]
fn a_step_of_adamw_is_the_optimizers() {
    let rig = &Rig::new();
    let count = 100;
    let settings = Settings { beta1: 0.8, beta2: 0.9, epsilon: 1e-3, weight_decay: 0.2 };
    let floats = |seed| numbers(count, seed).into_iter().map(bf16::to_f32).collect::<Vec<f32>>();
    let (mut weights, gradients) = (floats(1), floats(2));
    let adamw = WlAdamwArgs {
        version: WL_VERSION,
        gradient_dtype: WL_F32,
        count: count as u64,
        beta1: settings.beta1,
        beta2: settings.beta2,
        epsilon: settings.epsilon,
        weight_decay: settings.weight_decay,
        weights: rig.of(&weights),
        gradients: rig.of(&gradients),
        m: rig.zeros(4 * count),
        v: rig.zeros(4 * count),
        copy: rig.zeros(2 * count),
        step: rig.of(&[0.1_f32, 1.0, 1.0 / (1.0 - settings.beta1), 1.0 / (1.0 - settings.beta2)]),
        statistics: rig.zeros(size_of::<WlAdamwStatistics>()),
        scratch: rig.zeros(4096),
    };
    // SAFETY: the memory is there.
    unsafe { ok(wl_adamw(rig.stream, &adamw)) };
    let mut optimizer = AdamW::new(settings, count).unwrap();
    optimizer.step(&mut weights, &gradients, 0.1, 1.0).unwrap();
    let near =
        |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs() + 1e-7);
    assert!(near(&rig.read(adamw.weights), &weights));
    assert!(
        near(&rig.read(adamw.m), optimizer.moments().0) && near(&rig.read(adamw.v), optimizer.moments().1)
    );
    let copy: Vec<bf16> = rig.read(adamw.copy);
    assert!(
        copy.iter()
            .zip(&weights)
            .all(|(copy, weight)| (copy.to_f32() - weight).abs() <= 0.01 * weight.abs() + 1e-6)
    );
}
