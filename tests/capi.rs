//! The functions of C, as C calls them: what they compute is what the kernels of their names do, and what they are given wrong is refused.
#![cfg(feature = "capi")]

use std::{ffi::CStr, ptr};

use warploom::{
    capi::{abi::*, *},
    kernels::params::*,
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
