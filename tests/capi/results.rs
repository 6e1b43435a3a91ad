//! What the functions compute is what the kernels of their names do: which field is which argument.

use half::bf16;
use warploom::{
    capi::{abi::*, *},
    kernels::params::*,
    optimizer::{AdamW, Settings},
};

use super::{Rig, layout, ok};

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

/// The residual stream stays where it is, and what is normed goes where the update was.
#[test]
fn a_norm_and_a_gate_work_in_place() {
    let rig = &Rig::new();
    let (version, dtype, rows, width) = (WL_VERSION, WL_BF16, 2_usize, 128_usize);
    let (x, y, weight) = (numbers(rows * width, 1), numbers(rows * width, 2), rig.of(&numbers(width, 3)));
    let norm = |x: WlView, residual: WlView, new_residual: WlView, y: WlView| WlRmsNormArgs {
        version,
        dtype,
        y_dtype: dtype,
        rows: rows as u64,
        width: width as u64,
        eps: 1e-5,
        x: matrix(x, width),
        residual: matrix(residual, width),
        new_residual: matrix(new_residual, width),
        weight,
        y: matrix(y, width),
        ..Default::default()
    };
    let apart = norm(rig.of(&x), rig.of(&y), rig.zeros(2 * rows * width), rig.zeros(2 * rows * width));
    let (update, stream) = (rig.of(&x), rig.of(&y));
    let in_place = norm(update, stream, stream, update);
    let gate = |gate: WlView, out: WlView| WlSwigluArgs {
        version,
        dtype,
        out_dtype: dtype,
        rows: rows as u64,
        width: width as u64,
        gate: matrix(gate, width),
        up: matrix(rig.of(&y), width),
        out: matrix(out, width),
        ..Default::default()
    };
    let gated = [rig.of(&x), rig.zeros(2 * rows * width), rig.of(&x)];
    // SAFETY: the memory is there.
    unsafe {
        ok(wl_rms_norm(rig.stream, &apart));
        ok(wl_rms_norm(rig.stream, &in_place));
        ok(wl_swiglu(rig.stream, &gate(gated[0], gated[1])));
        ok(wl_swiglu(rig.stream, &gate(gated[2], gated[2])));
    }
    assert_eq!(rig.read::<u16>(update), rig.read::<u16>(apart.y.view));
    assert_eq!(rig.read::<u16>(stream), rig.read::<u16>(apart.new_residual.view));
    assert_eq!(rig.read::<u16>(gated[2]), rig.read::<u16>(gated[1]));
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
        ok(wl_linear(rig.stream, &WlLinearArgs { scratch: rig.scratch(bytes), ..linear }));
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
