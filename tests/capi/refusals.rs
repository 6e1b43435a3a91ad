//! What is given wrong is refused, by a status, with words that name it, and nothing is done.

use std::{ffi::CStr, ptr};

use warploom::{
    capi::{abi::*, *},
    kernels::params::*,
};

use super::{
    Rig,
    header::{View, views},
    layout, ok, words,
};

/// Calls a function as it should be called, and then in every wrong way: null pointers, another version, and each of its views null, a
/// byte short, at addresses that are not even enough, and past the end of the address space.
fn attack<A: Copy>(
    rig: &Rig,
    name: &str,
    function: unsafe extern "C" fn(*const WlStream, *const A) -> i32,
    args: A,
) {
    let [null, argument] = [WL_ERROR_NULL as i32, WL_ERROR_ARGUMENT as i32];
    // SAFETY: the memory is there; where it is not, nothing may be launched.
    let call = |args: &A| unsafe { function(rig.stream, args) };
    ok(call(&args));
    // SAFETY: the stream is there.
    unsafe { ok(wl_stream_synchronize(rig.stream)) };
    // SAFETY: null.
    unsafe {
        assert_eq!(function(ptr::null(), &args), null);
        assert_eq!(words(), "stream is null");
        assert_eq!(function(rig.stream, ptr::null()), null);
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
    let kind = std::any::type_name::<A>().rsplit("::").next().unwrap();
    for version in [0_u32, 2, u32::MAX] {
        assert_eq!(call(&changed(0, &version.to_ne_bytes())), WL_ERROR_VERSION as i32);
        assert!(words().starts_with(&format!("args ({kind}): version is {version},")), "{}", words());
    }
    // SAFETY: an odd address is refused before it is read.
    let odd = unsafe { function(rig.stream, (&raw const args).cast::<u8>().wrapping_add(1).cast()) };
    assert_eq!(odd, argument, "{name}");
    let views = views(kind);
    assert!(!views.is_empty());
    for View { name: view, offset, is_optional, alignment } in views {
        // SAFETY: a view of this struct.
        let there = unsafe { (&raw const args).cast::<u8>().add(offset).cast::<WlView>().read_unaligned() };
        if there.address == 0 {
            continue;
        }
        let refused = |changes: WlView, wanted: i32, what: &str| {
            let bytes = [changes.address.to_ne_bytes(), changes.bytes.to_ne_bytes()].concat();
            let status = call(&changed(offset, &bytes));
            assert_eq!(status, wanted, "{name}, {view} {what}: {}", words());
            let words = words();
            assert!(
                words.strip_prefix(&view).is_some_and(|rest| rest.starts_with([':', ' '])),
                "{view} {what}: {words}"
            );
            words
        };
        let nowhere = WlView { address: 0, ..there };
        assert!(refused(nowhere, null, "without an address").ends_with("is null"));
        match is_optional {
            false => drop(refused(WlView::default(), null, "none")),
            // It may be that another field asks for it.
            true => {
                let status = call(&changed(offset, &[0; 16]));
                assert!(
                    [WL_OK as i32, null, argument].contains(&status),
                    "{view} none: {status}, {}",
                    words()
                );
            }
        }
        let short = refused(WlView { bytes: there.bytes - 1, ..there }, argument, "a byte short");
        assert!(
            ["bytes do not hold", "are needed"].iter().any(|said| short.contains(said)),
            "{view}: {short}"
        );
        for off in [1, 2, 4, 8].into_iter().filter(|off| off % alignment > 0) {
            let uneven = refused(WlView { address: there.address + off, ..there }, argument, "not even");
            assert!(uneven.contains("not a multiple of"), "{view}: {uneven}");
        }
        let end = u64::MAX - 255;
        for (address, bytes) in
            [(end, there.bytes.max(256)), (there.address, u64::MAX), (there.address, 1 << 63)]
        {
            let beyond = refused(WlView { address, bytes }, argument, "beyond");
            assert!(beyond.contains("exceed the address space"), "{view}: {beyond}");
        }
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
    // What would be ignored.
    let refused = |args: WlRmsNormArgs, what: &str| {
        // SAFETY: nothing is launched.
        assert_eq!(unsafe { wl_rms_norm(rig.stream, &args) }, WL_ERROR_ARGUMENT as i32, "{what}");
        assert!(words().starts_with(what), "{}", words());
    };
    refused(WlRmsNormArgs { residual: WlMatrix::default(), ..norm }, "new_residual: given without");
    let without = WlRmsNormArgs { residual: WlMatrix::default(), new_residual: WlMatrix::default(), ..norm };
    let stride = WlMatrix { stride: 128, ..Default::default() };
    refused(WlRmsNormArgs { residual: stride, ..without }, "residual: 128; supported is 0 without its view");
    refused(
        WlRmsNormArgs { new_residual: stride, ..without },
        "new_residual: 128; supported is 0 without residual",
    );
    refused(WlRmsNormArgs { y: norm.new_residual, ..norm }, "y: it is new_residual");
    refused(WlRmsNormArgs { y_scales: quantised.y_scales, ..norm }, "y_scales: given without");
    refused(WlRmsNormArgs { y_bound: 3.0, ..norm }, "y_bound: 3");
    refused(WlRmsNormArgs { reserved: 1, ..norm }, "reserved: 1");
    refused(WlRmsNormArgs { dtype: WL_E4M3, ..norm }, "dtype: e4m3");
    refused(WlRmsNormArgs { y_bound: f32::NAN, ..quantised }, "y_bound: NaN");
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
        let [null, argument] = [WL_ERROR_NULL as i32, WL_ERROR_ARGUMENT as i32];
        assert_eq!(wl_attention_decode_scratch(ptr::null(), &decode, &mut bytes), null);
        assert_eq!(wl_attention_decode_scratch(rig.stream, ptr::null(), &mut bytes), null);
        assert_eq!(wl_attention_decode_scratch(rig.stream, &decode, ptr::null_mut()), null);
        let older = WlAttentionDecodeArgs { version: 0, ..decode };
        assert_eq!(wl_attention_decode_scratch(rig.stream, &older, &mut bytes), WL_ERROR_VERSION as i32);
        // It is asked before the launch: what that would refuse is refused now.
        for wrong in [
            WlAttentionDecodeArgs { dtype: WL_F32, ..decode },
            WlAttentionDecodeArgs { max_rows: 65, ..decode },
            WlAttentionDecodeArgs { layout: WlPageLayout { page_size: 7, ..layout() }, ..decode },
        ] {
            assert_eq!(wl_attention_decode_scratch(rig.stream, &wrong, &mut bytes), argument, "{wrong:?}");
        }
        let mut most = 0;
        let most_of = wl_attention_decode_most_scratch;
        ok(most_of(rig.stream, 2, 1, heads as u64, head_dim as u64, 2, 200, &mut most));
        assert!(most >= bytes && bytes > 0, "{most} of {bytes}");
        assert_eq!(most_of(ptr::null(), 2, 1, 4, 64, 2, 200, &mut most), null);
        assert_eq!(most_of(rig.stream, 2, 1, 4, 64, 2, 200, ptr::null_mut()), null);
        let kept = most;
        for (what, [sequences, rows, heads, head_dim, kv_heads, keys]) in [
            ("sequences", [65536, 1, 4, 64, 2, 200]),
            ("max_rows", [2, 65, 4, 64, 2, 200]),
            ("max_rows", [2, 0, 4, 64, 2, 200]),
            ("heads", [2, 1, 5, 64, 2, 200]),
            ("head_dim", [2, 1, 4, 7, 2, 200]),
            ("head_dim", [2, 1, 4, 512, 2, 200]),
            ("kv_heads", [2, 1, 4, 64, 0, 200]),
            ("max_keys", [2, 1, 4, 64, 2, 0]),
            ("max_keys", [2, 1, 4, 64, 2, (1 << 28) + 1]),
            ("sequences", [u64::MAX; 6]),
        ] {
            let done = most_of(rig.stream, sequences, rows, heads, head_dim, kv_heads, keys, &mut most);
            assert_eq!(done, WL_ERROR_ARGUMENT as i32, "{what}");
            assert!(words().starts_with(what) && most == kept, "{}", words());
        }
        let mut again = 0;
        let nothing = WlAttentionDecodeArgs {
            q: WlMatrix { stride: decode.q.stride, ..Default::default() },
            out: WlMatrix { stride: decode.out.stride, ..Default::default() },
            lengths: WlView::default(),
            ..decode
        };
        ok(wl_attention_decode_scratch(rig.stream, &nothing, &mut again));
        assert!(bytes > 0 && again == bytes);
        assert_eq!(wl_attention_decode(rig.stream, &decode), WL_ERROR_NULL as i32, "without scratch");
        assert_eq!(words(), "scratch is null");
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
        WlMask { pattern: WL_BLOCKWISE, keys: 3, ..decode.mask },
        WlMask { pattern: WL_CAUSAL, keys: 3, ..decode.mask },
        WlMask { prefix: -1, ..decode.mask },
        WlMask { reserved: 1, ..decode.mask },
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
    // SAFETY: all pointers point to what they should, or are null.
    unsafe {
        let null = WL_ERROR_NULL as i32;
        assert_eq!(wl_linear_scratch(ptr::null(), &linear, &mut bytes), null);
        assert_eq!(wl_linear_scratch(rig.stream, ptr::null(), &mut bytes), null);
        assert_eq!(wl_linear_scratch(rig.stream, &linear, ptr::null_mut()), null);
        for wrong in [
            WlLinearArgs { rows: 65, ..linear },
            WlLinearArgs { dtype: WL_E4M3, ..linear },
            WlLinearArgs { projections: [projection; 3], ..linear },
            WlLinearArgs { prefetch: 2, ..linear },
        ] {
            assert_eq!(wl_linear_scratch(rig.stream, &wrong, &mut bytes), WL_ERROR_ARGUMENT as i32);
        }
        ok(wl_linear_scratch(rig.stream, &linear, &mut bytes));
    }
    linear.scratch = rig.scratch(bytes);
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
    // Of e4m3, with scales.
    let e4m3 = |rows: usize| WlMatrix { view: rig.zeros(rows * inputs), stride: inputs as u64 };
    let scaled = WlProjectionArgs { weight: e4m3(features), scales: rig.zeros(4 * features), ..projection };
    let fp8 = WlLinearArgs {
        x: e4m3(rows),
        x_scales: rig.zeros(4 * rows),
        norm_weight: WlView::default(),
        norm_eps: 0.0,
        norm_stats: WlView::default(),
        projections: [scaled, Default::default(), Default::default()],
        ..linear
    };
    attack(rig, "linear, e4m3", wl_linear, fp8);
    let fp8 = WlGemmArgs { x: fp8.x, x_scales: fp8.x_scales, projections: fp8.projections, ..gemm };
    attack(rig, "gemm, e4m3", wl_gemm, fp8);
    // A projection that was forgotten is not the end of them.
    let three = [0, 64, 128].map(|column| WlProjectionArgs { column, ..projection });
    let mut all = WlLinearArgs {
        epilogue: WL_LINEAR_STORE,
        projections: three,
        out: rig.rows(rows, 3 * features),
        out_stats: WlView::default(),
        ..linear
    };
    // SAFETY: the memory is there; what is refused launches nothing.
    unsafe {
        ok(wl_linear_scratch(rig.stream, &all, &mut bytes));
        all.scratch = rig.zeros(bytes as usize);
        ok(wl_linear(rig.stream, &all));
        all.projections[1].weight.view.address = 0;
        assert_eq!(wl_linear(rig.stream, &all), WL_ERROR_NULL as i32);
        assert_eq!(words(), "projections[1].weight is null");
        all.projections[1] = WlProjectionArgs::default();
        assert_eq!(wl_linear(rig.stream, &all), WL_ERROR_ARGUMENT as i32);
        assert!(words().starts_with("projections[2].weight: given behind"), "{}", words());
    }
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
        assert_eq!(wl_sample_scratch(4, vocab as u64, ptr::null_mut()), WL_ERROR_NULL as i32);
        for (rows, vocab) in [(4097, 40), (4, 0), (4, u64::MAX), (u64::MAX, 40)] {
            assert_eq!(wl_sample_scratch(rows, vocab, &mut bytes), WL_ERROR_ARGUMENT as i32);
        }
        ok(wl_sample_scratch(4, vocab as u64, &mut bytes));
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
    let none = WlMatrix::default();
    let plain = WlAcceptArgs {
        draft_logits: none,
        verify_logits: none,
        draft_steps: 0,
        draft_rows: 0,
        draft_step_stride: 0,
        ..accept
    };
    for (wrong, what) in [
        (WlAcceptArgs { draft_steps: 1, ..plain }, "draft_steps: 1; supported is 0 without draft_logits"),
        (WlAcceptArgs { draft_rows: 1, ..plain }, "draft_rows: 1"),
        (WlAcceptArgs { draft_step_stride: 1, ..plain }, "draft_step_stride: 1"),
        (WlAcceptArgs { draft_steps: 99, ..accept }, "draft_steps: 99"),
        (WlAcceptArgs { draft_step_stride: 1, ..accept }, "draft_step_stride: "),
    ] {
        // SAFETY: nothing is launched.
        assert_eq!(unsafe { wl_accept(rig.stream, &wrong) }, WL_ERROR_ARGUMENT as i32, "{what}");
        assert!(words().starts_with(what), "{}", words());
    }
    // SAFETY: the memory is there.
    unsafe { ok(wl_accept(rig.stream, &plain)) };
    let count = 100_usize;
    // SAFETY: a place for a number.
    unsafe {
        assert_eq!(wl_adamw_scratch(count as u64, ptr::null_mut()), WL_ERROR_NULL as i32);
        assert_eq!(wl_adamw_scratch(u64::MAX, &mut bytes), WL_ERROR_ARGUMENT as i32);
        ok(wl_adamw_scratch(count as u64, &mut bytes));
    }
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
        let argument = WL_ERROR_ARGUMENT as i32;
        assert_eq!(wl_device_close(rig.device.cast::<u8>().wrapping_add(1).cast()), argument);
        assert_eq!(wl_stream_destroy(rig.stream.cast::<u8>().wrapping_add(1).cast()), argument);
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
        let mut taken = WlView::default();
        assert_eq!(wl_device_properties(ptr::null(), &mut properties), null);
        assert_eq!(wl_allocate(ptr::null(), 16, &mut taken), null);
        assert_eq!(wl_free(ptr::null(), view.address), null);
        assert_eq!(wl_stream_of_cuda(ptr::null(), ptr::null_mut(), &mut stream), null);
        assert_eq!(wl_stream_of_cuda(rig.device, ptr::null_mut(), ptr::null_mut()), null);
        assert_eq!(wl_stream_set_overlapping(ptr::null_mut(), 1), null);
        assert_eq!(wl_stream_set_overlapping(rig.stream, 2), WL_ERROR_ARGUMENT as i32);
        ok(wl_stream_set_overlapping(rig.stream, 1));
        ok(wl_stream_set_overlapping(rig.stream, 0));
        let bytes = [0_u8; 16];
        assert_eq!(wl_upload(ptr::null(), view, bytes.as_ptr().cast()), null);
        assert_eq!(wl_download(ptr::null(), (&raw mut taken).cast(), view), null);
        assert_eq!(wl_copy(ptr::null(), view, view), null);
        assert_eq!(wl_fill(ptr::null(), view, 0), null);
        let nowhere = WlView { address: 0, bytes: 16 };
        for none in [WlView::default(), nowhere] {
            assert_eq!(wl_upload(rig.stream, none, bytes.as_ptr().cast()), null);
            assert_eq!(wl_download(rig.stream, (&raw mut taken).cast(), none), null);
            assert_eq!(wl_copy(rig.stream, none, view), null);
            assert_eq!(wl_copy(rig.stream, view, none), null);
            assert_eq!(wl_fill(rig.stream, none, 0), null);
        }
        for bytes in [u64::MAX, 1 << 63] {
            let endless = WlView { bytes, ..view };
            let argument = WL_ERROR_ARGUMENT as i32;
            assert_eq!(wl_upload(rig.stream, endless, (&raw const bytes).cast()), argument);
            assert_eq!(wl_download(rig.stream, (&raw mut taken).cast(), endless), argument);
            assert_eq!(wl_copy(rig.stream, endless, view), argument);
            assert_eq!(wl_fill(rig.stream, endless, 0), argument);
        }
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
        ok(wl_fill(rig.stream, WlView { bytes: 0, ..view }, 1));
        // Of another device.
        let mut elsewhere = ptr::null_mut();
        ok(wl_device_open(c"sim".as_ptr(), &mut elsewhere));
        assert_eq!(wl_free(elsewhere, view.address), WL_ERROR_ARGUMENT as i32);
        ok(wl_device_close(elsewhere));
        let beyond = WlView { bytes: 3 << 20, ..view };
        assert_eq!(wl_fill(rig.stream, beyond, 1), WL_ERROR_DEVICE as i32);
        assert_eq!(rig.read::<u32>(view), [1, 2, 3, 4], "nothing was written");
        ok(wl_free(rig.device, view.address));
        assert_eq!(wl_free(rig.device, view.address), WL_ERROR_ARGUMENT as i32);
        assert_eq!(wl_fill(rig.stream, view, 1), WL_ERROR_DEVICE as i32, "it is gone");
    }
    // Each thread has words of its own.
    assert!(!words().is_empty());
    assert_eq!(std::thread::spawn(words).join().unwrap(), "");
}
