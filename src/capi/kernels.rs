//! A function for each kernel.

use std::fmt::Display;

use super::{
    abi::{
        WlAcceptArgs, WlAdamwArgs, WlAttentionDecodeArgs, WlAttentionPrefillArgs, WlEmbedArgs, WlGemmArgs,
        WlLinearArgs, WlMatrix, WlPageLayout, WlPageTable, WlProjectionArgs, WlQuantizeFp8RowsArgs,
        WlRmsNormArgs, WlRopeAppendArgs, WlRoundBeginArgs, WlRoundRows, WlRowTable, WlSampleArgs,
        WlSwigluArgs, WlView,
    },
    device::{WlStream, size, view, view_mut},
    status::{Failure, given, place, status, versioned},
};
use crate::{
    driver::{View, ViewMut},
    error::Error,
    kernels::{
        AcceptArgs, AcceptLogits, Adamw, AdamwArgs, AttentionDecodeArgs, AttentionPrefillArgs, BeginArgs,
        Dtype, E4m3Rows, EmbedArgs, GemmArgs, LinearArgs, LinearEpilogue, LinearNorm, LinearProjection,
        PageLayout, PageTable, QuantizeFp8RowsArgs, RmsNormArgs, RopeAppendArgs, RoundRows, RowTable, Rows,
        RowsMut, Sample, SampleArgs, SamplePass, SwigluArgs,
        params::{
            WL_BF16, WL_BLOCK, WL_BLOCKWISE, WL_CAUSAL, WL_CHUNK, WL_E4M3, WL_F16, WL_F32, WL_FULL,
            WL_LINEAR_ADD, WL_LINEAR_STORE, WL_LINEAR_STORE_F32, WL_LINEAR_SWIGLU, WL_OVERLAP,
            WL_SAMPLE_DRAFT, WL_SAMPLE_VERIFY, WL_WINDOW, WlMask,
        },
        projection,
        sample::{DRAFT, VERIFY},
    },
    mask::{Mask, Pattern},
    optimizer::Settings,
};

type Result<T> = std::result::Result<T, Failure>;

fn refuse<T>(argument: &'static str, reason: String) -> Result<T> {
    Err(Error::argument(argument, reason).into())
}

fn dtype(argument: &'static str, code: u32) -> Result<Dtype> {
    match code {
        WL_BF16 => Ok(Dtype::Bf16),
        WL_F16 => Ok(Dtype::F16),
        WL_F32 => Ok(Dtype::F32),
        WL_E4M3 => Ok(Dtype::E4m3),
        other => refuse(
            argument,
            format!(
                "{other}; types are WL_BF16, WL_F16, WL_F32 and WL_E4M3, {WL_BF16} to {WL_E4M3}, of which each function takes some"
            ),
        ),
    }
}

fn is_given(view: WlView) -> bool {
    view.address != 0
}

fn is_empty(view: WlView) -> bool {
    view.address == 0 && view.bytes == 0
}

/// Whether there is a view. One without an address but with a size is none, and was to be one.
fn given_view(argument: &'static str, of: WlView) -> Result<bool> {
    if !is_given(of) && of.bytes > 0 {
        return Err(Failure::Null(argument));
    }
    Ok(is_given(of))
}

/// None for a view that is none.
fn optional(argument: &'static str, of: WlView) -> Result<Option<View<'static>>> {
    given_view(argument, of)?.then(|| view(argument, of)).transpose()
}

fn optional_mut(argument: &'static str, of: WlView) -> Result<Option<ViewMut<'static>>> {
    given_view(argument, of)?.then(|| view_mut(argument, of)).transpose()
}

fn optional_rows(argument: &'static str, of: WlMatrix) -> Result<Option<Rows<'static>>> {
    given_view(argument, of.view)?.then(|| rows(argument, of)).transpose()
}

fn optional_rows_mut(argument: &'static str, of: WlMatrix) -> Result<Option<RowsMut<'static>>> {
    given_view(argument, of.view)?.then(|| rows_mut(argument, of)).transpose()
}

/// Refuses what is given and would be ignored.
fn none(argument: &'static str, of: WlView, without: &str) -> Result<()> {
    match is_empty(of) {
        true => Ok(()),
        false => refuse(argument, format!("given without {without}")),
    }
}

/// The same of rows.
fn no_rows(argument: &'static str, of: WlMatrix, without: &str) -> Result<()> {
    none(argument, of.view, without)?;
    zero(argument, of.stride, without)
}

/// The same of a number.
fn zero<N: Copy + Default + PartialEq + Display>(argument: &'static str, of: N, without: &str) -> Result<()> {
    match of == N::default() {
        true => Ok(()),
        false => refuse(argument, format!("{of}; supported is 0 without {without}")),
    }
}

fn rows(argument: &'static str, of: WlMatrix) -> Result<Rows<'static>> {
    Ok(Rows { view: view(argument, of.view)?, stride: size(argument, of.stride)? })
}

fn rows_mut(argument: &'static str, of: WlMatrix) -> Result<RowsMut<'static>> {
    Ok(RowsMut { view: view_mut(argument, of.view)?, stride: size(argument, of.stride)? })
}

/// What no launch may touch: of scratch that is none.
fn nothing() -> ViewMut<'static> {
    // SAFETY: of no bytes.
    unsafe { ViewMut::from_raw(0, 0) }
}

/// Calls `launch` with scratch, which may be none where none is needed; the launch refuses what is too small.
fn with_scratch(
    of: WlView,
    launch: impl FnOnce(ViewMut<'static>) -> std::result::Result<(), Error>,
) -> Result<()> {
    let scratch = optional_mut("scratch", of)?;
    let is_none = scratch.is_none();
    launch(scratch.unwrap_or_else(nothing)).map_err(|error| match error {
        Error::Argument { argument, .. } if is_none && argument == "scratch" => Failure::Null("scratch"),
        other => other.into(),
    })
}

/// What is kept for later versions, which could not tell otherwise who uses it.
fn reserved(value: u32) -> Result<()> {
    match value {
        0 => Ok(()),
        other => refuse("reserved", format!("{other}; set what is not used to 0")),
    }
}

/// A number that stands for no or yes.
fn flag(argument: &'static str, value: u32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => refuse(argument, format!("{other}; supported are 0 and 1")),
    }
}

/// A bound of e4m3, of which 0 is none.
fn bound(value: f32) -> Option<f32> {
    (value != 0.0).then_some(value)
}

fn e4m3(names: [&'static str; 2], q: WlMatrix, scales: WlView, of: f32) -> Result<E4m3Rows<'static>> {
    Ok(E4m3Rows { q: rows_mut(names[0], q)?, scales: view_mut(names[1], scales)?, bound: bound(of) })
}

/// What belongs to e4m3 is none without it.
fn not_e4m3(names: [&'static str; 2], scales: WlView, bound: f32) -> Result<()> {
    none(names[0], scales, "a result of e4m3")?;
    zero(names[1], bound, "a result of e4m3")
}

fn layout(of: &WlPageLayout) -> Result<PageLayout> {
    Ok(PageLayout {
        pages: size("pages", of.pages)?,
        page_size: size("page_size", of.page_size)?,
        kv_heads: size("kv_heads", of.kv_heads)?,
        head_dim: size("head_dim", of.head_dim)?,
        page_stride: size("page_stride", of.page_stride)?,
        head_stride: size("head_stride", of.head_stride)?,
        slot_stride: size("slot_stride", of.slot_stride)?,
    })
}

fn table(of: &WlPageTable) -> Result<PageTable<'static>> {
    let (sequences, stride) = (size("table.sequences", of.sequences)?, size("table.stride", of.stride)?);
    Ok(PageTable { view: view("table", of.view)?, sequences, stride })
}

fn mask(of: &WlMask) -> Result<Mask> {
    let count = |argument: &'static str, value: i32| match usize::try_from(value) {
        Ok(count) => Ok(count),
        Err(_) => refuse(argument, format!("{value}; supported are numbers from 0")),
    };
    if of.reserved != 0 {
        return refuse("mask.reserved", format!("{}; set what is not used to 0", of.reserved));
    }
    let (keys, prefix) = (count("mask.keys", of.keys)?, count("mask.prefix", of.prefix)?);
    if keys > 0 && [WL_CAUSAL, WL_FULL].contains(&of.pattern) {
        return refuse("mask.keys", format!("{keys}; supported is 0 with WL_CAUSAL and WL_FULL"));
    }
    let pattern = match of.pattern {
        WL_CAUSAL => Pattern::Causal,
        WL_WINDOW => Pattern::Window { keys },
        WL_CHUNK => Pattern::Chunk { keys },
        WL_OVERLAP => Pattern::Overlap { keys },
        WL_BLOCKWISE => Pattern::Blockwise { keys },
        WL_BLOCK => Pattern::Block { keys },
        WL_FULL => Pattern::Full,
        other => {
            return refuse(
                "mask.pattern",
                format!("{other}; the patterns are WL_CAUSAL to WL_FULL, {WL_CAUSAL} to {WL_FULL}"),
            );
        }
    };
    Ok(Mask { pattern, prefix })
}

fn epilogue(code: u32) -> Result<LinearEpilogue> {
    match code {
        WL_LINEAR_STORE => Ok(LinearEpilogue::Store),
        WL_LINEAR_STORE_F32 => Ok(LinearEpilogue::StoreF32),
        WL_LINEAR_ADD => Ok(LinearEpilogue::Add),
        WL_LINEAR_SWIGLU => Ok(LinearEpilogue::SwiGlu),
        other => refuse(
            "epilogue",
            format!(
                "{other}; there are WL_LINEAR_STORE to WL_LINEAR_SWIGLU, {WL_LINEAR_STORE} to {WL_LINEAR_SWIGLU}"
            ),
        ),
    }
}

fn projections(of: &[WlProjectionArgs; 3]) -> Result<[Option<LinearProjection<'static>>; 3]> {
    let mut found = [None; 3];
    let mut ended = false;
    for (i, (to, of)) in found.iter_mut().zip(of).enumerate() {
        let WlProjectionArgs { weight, scales, bias, features, column } = *of;
        let is_none = [weight.view, scales, bias].into_iter().all(is_empty)
            && [weight.stride, features, column] == [0; 3];
        match (is_none, ended) {
            (true, _) => ended = true,
            (false, true) => {
                return refuse(projection::WEIGHT[i], "given behind a projection that is none".into());
            }
            (false, false) => {
                *to = Some(LinearProjection {
                    weight: rows(projection::WEIGHT[i], weight)?,
                    scales: optional(projection::SCALES[i], scales)?,
                    bias: optional(projection::BIAS[i], bias)?,
                    features: size(projection::FEATURES[i], features)?,
                    column: size(projection::COLUMN[i], column)?,
                });
            }
        }
    }
    Ok(found)
}

/// Of no rows they may be none.
fn row_table(names: [&'static str; 3], of: &WlRowTable, rows: u64) -> Result<RowTable<'static>> {
    let array = |name, of: WlView| match rows == 0 && is_empty(of) {
        true => Ok(nothing()),
        false => view_mut(name, of),
    };
    Ok(RowTable {
        tokens: array(names[0], of.tokens)?,
        positions: array(names[1], of.positions)?,
        sequences: array(names[2], of.sequences)?,
    })
}

fn round_rows(of: &WlRoundRows) -> Result<RoundRows<'static>> {
    Ok(RoundRows {
        steps: size("round.steps", of.steps)?,
        draft_rows: size("round.draft_rows", of.draft_rows)?,
        draft: row_table(DRAFT, &of.draft, of.draft_rows)?,
        verify_rows: size("round.verify_rows", of.verify_rows)?,
        verify: row_table(VERIFY, &of.verify, of.verify_rows)?,
    })
}

/// Calls `work` with a stream and a struct of this version.
///
/// # Safety
/// The pointers point to what their types say, or are null.
unsafe fn call<A>(
    stream: *const WlStream,
    args: *const A,
    work: impl FnOnce(&WlStream, &A) -> Result<()>,
) -> i32 {
    // SAFETY: the caller's promise.
    status(|| unsafe { work(given(stream, "stream")?, versioned(args, "args")?) })
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident($stream:ident, $args:ident: $type:ty) $work:block)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// The pointers point to what their types say, or are null; the memory is as `warploom.h` asks for.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name(stream: *const WlStream, args: *const $type) -> i32 {
                // SAFETY: the caller's promise.
                unsafe { call(stream, args, |$stream: &WlStream, $args: &$type| { $work; Ok(()) }) }
            }
        )*
    };
}

functions! {
    /// RMSNorm.
    wl_rms_norm(on, a: WlRmsNormArgs) {
        reserved(a.reserved)?;
        let kernel = on.device.kernels.rms_norm.on(&on.device)?;
        let of = dtype("dtype", a.dtype)?;
        if of == Dtype::E4m3 {
            return refuse("dtype", format!("{of}; supported are bf16, f16 and f32"));
        }
        let residual = match optional_rows("residual", a.residual)? {
            Some(residual) => Some((residual, rows_mut("new_residual", a.new_residual)?)),
            None => {
                zero("residual", a.residual.stride, "its view")?;
                no_rows("new_residual", a.new_residual, "residual")?;
                None
            }
        };
        let args = RmsNormArgs {
            dtype: of,
            rows: size("rows", a.rows)?,
            width: size("width", a.width)?,
            eps: a.eps,
            x: rows("x", a.x)?,
            residual,
            weight: view("weight", a.weight)?,
            y: (),
            stats: optional_mut("stats", a.stats)?,
            positions: optional("positions", a.positions)?,
        };
        match dtype("y_dtype", a.y_dtype)? {
            Dtype::E4m3 => {
                let y = e4m3(["y", "y_scales"], a.y, a.y_scales, a.y_bound)?;
                kernel.launch_e4m3(&on.stream, &args.with(y))?;
            }
            other if other == of => {
                not_e4m3(["y_scales", "y_bound"], a.y_scales, a.y_bound)?;
                kernel.launch(&on.stream, &args.with(rows_mut("y", a.y)?))?;
            }
            other => return refuse("y_dtype", format!("{other}; supported are dtype, {of}, and e4m3")),
        }
    }

    /// Token ids to rows.
    wl_embed(on, a: WlEmbedArgs) {
        on.device.kernels.embed.on(&on.device)?.launch(&on.stream, &EmbedArgs {
            dtype: dtype("dtype", a.dtype)?,
            rows: size("rows", a.rows)?,
            width: size("width", a.width)?,
            vocabulary: size("vocabulary", a.vocabulary)?,
            table: rows("table", a.table)?,
            tokens: view("tokens", a.tokens)?,
            positions: optional("positions", a.positions)?,
            out: rows_mut("out", a.out)?,
            stats: optional_mut("stats", a.stats)?,
        })?;
    }

    /// silu(gate) · up.
    wl_swiglu(on, a: WlSwigluArgs) {
        let kernel = on.device.kernels.swiglu.on(&on.device)?;
        let of = dtype("dtype", a.dtype)?;
        if of == Dtype::E4m3 {
            return refuse("dtype", format!("{of}; supported are bf16 and f16"));
        }
        let args = SwigluArgs {
            dtype: of,
            rows: size("rows", a.rows)?,
            width: size("width", a.width)?,
            gate: rows("gate", a.gate)?,
            up: rows("up", a.up)?,
            out: (),
            positions: optional("positions", a.positions)?,
        };
        match dtype("out_dtype", a.out_dtype)? {
            Dtype::E4m3 => {
                let out = e4m3(["out", "out_scales"], a.out, a.out_scales, a.out_bound)?;
                kernel.launch_e4m3(&on.stream, &args.with(out))?;
            }
            other if other == of => {
                not_e4m3(["out_scales", "out_bound"], a.out_scales, a.out_bound)?;
                kernel.launch(&on.stream, &args.with(rows_mut("out", a.out)?))?;
            }
            other => return refuse("out_dtype", format!("{other}; supported are dtype, {of}, and e4m3")),
        }
    }

    /// Rows to e4m3.
    wl_quantize_fp8_rows(on, a: WlQuantizeFp8RowsArgs) {
        reserved(a.reserved)?;
        on.device.kernels.quantize_fp8_rows.on(&on.device)?.launch(&on.stream, QuantizeFp8RowsArgs {
            dtype: dtype("dtype", a.dtype)?,
            rows: size("rows", a.rows)?,
            width: size("width", a.width)?,
            bound: bound(a.bound),
            x: rows("x", a.x)?,
            q: rows_mut("q", a.q)?,
            scales: view_mut("scales", a.scales)?,
            positions: optional("positions", a.positions)?,
        })?;
    }

    /// Rotary positions, and keys and values to their pages.
    wl_rope_append(on, a: WlRopeAppendArgs) {
        reserved(a.reserved)?;
        on.device.kernels.rope_append.on(&on.device)?.launch(&on.stream, &RopeAppendArgs {
            dtype: dtype("dtype", a.dtype)?,
            rows: size("rows", a.rows)?,
            heads: size("heads", a.heads)?,
            qkv: rows_mut("qkv", a.qkv)?,
            positions: view("positions", a.positions)?,
            slots: view("slots", a.slots)?,
            frequencies: view("frequencies", a.frequencies)?,
            magnitude: a.magnitude,
            layout: layout(&a.layout)?,
            k: view_mut("k", a.k)?,
            v: view_mut("v", a.v)?,
            table: table(&a.table)?,
        })?;
    }

    /// Attention of few rows.
    wl_attention_decode(on, a: WlAttentionDecodeArgs) {
        let kernel = on.device.kernels.attention_decode.on(&on.device)?;
        let args = attention_decode(a)?;
        with_scratch(a.scratch, |scratch| kernel.launch(&on.stream, &args, scratch))?;
    }

    /// Attention of any number of rows.
    wl_attention_prefill(on, a: WlAttentionPrefillArgs) {
        on.device.kernels.attention_prefill.on(&on.device)?.launch(&on.stream, &AttentionPrefillArgs {
            dtype: dtype("dtype", a.dtype)?,
            tokens: size("tokens", a.tokens)?,
            sequences: size("sequences", a.sequences)?,
            heads: size("heads", a.heads)?,
            q: rows("q", a.q)?,
            out: rows_mut("out", a.out)?,
            lse: optional_mut("lse", a.lse)?,
            layout: layout(&a.layout)?,
            k: view("k", a.k)?,
            v: view("v", a.v)?,
            table: table(&a.table)?,
            slots: optional("slots", a.slots)?,
            lengths: view("lengths", a.lengths)?,
            offsets: view("offsets", a.offsets)?,
            positions: optional("positions", a.positions)?,
            max_rows: size("max_rows", a.max_rows)?,
            max_keys: size("max_keys", a.max_keys)?,
            mask: mask(&a.mask)?,
            documents: optional("documents", a.documents)?,
            scale: a.scale,
            softcap: a.softcap,
            sinks: optional("sinks", a.sinks)?,
        })?;
    }

    /// Products of few rows.
    wl_linear(on, a: WlLinearArgs) {
        let kernel = on.device.kernels.linear.on(&on.device)?;
        let args = linear(a)?;
        with_scratch(a.scratch, |scratch| kernel.launch(&on.stream, args, scratch))?;
    }

    /// Products of any number of rows.
    wl_gemm(on, a: WlGemmArgs) {
        reserved(a.reserved)?;
        on.device.kernels.gemm.on(&on.device)?.launch(&on.stream, GemmArgs {
            dtype: dtype("dtype", a.dtype)?,
            rows: size("rows", a.rows)?,
            inputs: size("inputs", a.inputs)?,
            x: rows("x", a.x)?,
            x_scales: optional("x_scales", a.x_scales)?,
            projections: projections(&a.projections)?,
            epilogue: epilogue(a.epilogue)?,
            out: rows_mut("out", a.out)?,
            out_stats: optional_mut("out_stats", a.out_stats)?,
        })?;
    }

    /// The beginning of a round.
    wl_round_begin(on, a: WlRoundBeginArgs) {
        reserved(a.reserved)?;
        on.device.kernels.accept.on(&on.device)?.begin(&on.stream, &BeginArgs {
            slots: size("slots", a.slots)?,
            plans: view("plans", a.plans)?,
            states: view_mut("states", a.states)?,
            round: round_rows(&a.round)?,
            draft_lengths: optional_mut("draft_lengths", a.draft_lengths)?,
            verify_lengths: optional_mut("verify_lengths", a.verify_lengths)?,
        })?;
    }

    /// The choice of tokens.
    wl_sample(on, a: WlSampleArgs) {
        let (first, count) = (size("first_row", a.first_row)?, size("rows", a.rows)?);
        let Some(end) = first.checked_add(count) else {
            return refuse("rows", format!("{count} from {first} exceed the address space"));
        };
        let pass = match a.mode {
            WL_SAMPLE_DRAFT => SamplePass::Draft { step: size("step", a.step)? },
            WL_SAMPLE_VERIFY if a.step > 0 => {
                return refuse("step", format!("{}; supported is 0 with WL_SAMPLE_VERIFY", a.step));
            }
            WL_SAMPLE_VERIFY => SamplePass::Verify,
            other => {
                let names = "WL_SAMPLE_DRAFT and WL_SAMPLE_VERIFY";
                return refuse("mode", format!("{other}; there are {names}, {WL_SAMPLE_DRAFT} and {WL_SAMPLE_VERIFY}"));
            }
        };
        let kernel = on.device.kernels.sample.on(&on.device)?;
        let mut args = SampleArgs {
            pass,
            rows: first..end,
            vocab: size("vocab", a.vocab)?,
            logits: rows("logits", a.logits)?,
            round: round_rows(&a.round)?,
            slots: size("slots", a.slots)?,
            states: view_mut("states", a.states)?,
            seen: optional_rows("seen", a.seen)?,
            choices: view_mut("choices", a.choices)?,
            probabilities: optional_rows_mut("probabilities", a.probabilities)?,
            hashes: optional_mut("hashes", a.hashes)?,
            scratch: nothing(),
        };
        with_scratch(a.scratch, |scratch| {
            args.scratch = scratch;
            kernel.launch(&on.stream, &args)
        })?;
    }

    /// The end of a round.
    wl_accept(on, a: WlAcceptArgs) {
        reserved(a.reserved)?;
        let logits = match optional_rows("draft_logits", a.draft_logits)? {
            Some(draft) => Some(AcceptLogits {
                steps: size("draft_steps", a.draft_steps)?,
                draft_rows: size("draft_rows", a.draft_rows)?,
                draft,
                draft_step_stride: size("draft_step_stride", a.draft_step_stride)?,
                verify: rows("verify_logits", a.verify_logits)?,
            }),
            None => {
                zero("draft_logits", a.draft_logits.stride, "its view")?;
                no_rows("verify_logits", a.verify_logits, "draft_logits")?;
                zero("draft_steps", a.draft_steps, "draft_logits")?;
                zero("draft_rows", a.draft_rows, "draft_logits")?;
                zero("draft_step_stride", a.draft_step_stride, "draft_logits")?;
                None
            }
        };
        on.device.kernels.accept.on(&on.device)?.launch(&on.stream, &AcceptArgs {
            slots: size("slots", a.slots)?,
            vocab: size("vocab", a.vocab)?,
            states: view_mut("states", a.states)?,
            rounds: view_mut("rounds", a.rounds)?,
            seen: optional_rows_mut("seen", a.seen)?,
            draft_choices: view("draft_choices", a.draft_choices)?,
            verify_first: size("verify_first", a.verify_first)?,
            verify_rows: size("verify_rows", a.verify_rows)?,
            verify_choices: view("verify_choices", a.verify_choices)?,
            logits,
        })?;
    }

    /// A step of AdamW.
    wl_adamw(on, a: WlAdamwArgs) {
        let kernel = on.device.kernels.adamw.on(&on.device)?;
        let settings = Settings {
            beta1: a.beta1,
            beta2: a.beta2,
            epsilon: a.epsilon,
            weight_decay: a.weight_decay,
        };
        let mut args = AdamwArgs {
            settings,
            count: size("count", a.count)?,
            weights: view_mut("weights", a.weights)?,
            gradient_dtype: dtype("gradient_dtype", a.gradient_dtype)?,
            gradients: view("gradients", a.gradients)?,
            m: view_mut("m", a.m)?,
            v: view_mut("v", a.v)?,
            copy: optional_mut("copy", a.copy)?,
            step: view("step", a.step)?,
            statistics: view_mut("statistics", a.statistics)?,
            scratch: nothing(),
        };
        with_scratch(a.scratch, |scratch| {
            args.scratch = scratch;
            kernel.launch(&on.stream, args)
        })?;
    }
}

fn attention_decode(a: &WlAttentionDecodeArgs) -> Result<AttentionDecodeArgs<'static>> {
    Ok(AttentionDecodeArgs {
        dtype: dtype("dtype", a.dtype)?,
        tokens: size("tokens", a.tokens)?,
        sequences: size("sequences", a.sequences)?,
        heads: size("heads", a.heads)?,
        q: rows("q", a.q)?,
        out: rows_mut("out", a.out)?,
        lse: optional_mut("lse", a.lse)?,
        layout: layout(&a.layout)?,
        k: view("k", a.k)?,
        v: view("v", a.v)?,
        table: table(&a.table)?,
        slots: optional("slots", a.slots)?,
        lengths: view("lengths", a.lengths)?,
        offsets: view("offsets", a.offsets)?,
        positions: optional("positions", a.positions)?,
        max_rows: size("max_rows", a.max_rows)?,
        max_keys: size("max_keys", a.max_keys)?,
        mask: mask(&a.mask)?,
        documents: optional("documents", a.documents)?,
        tree: optional("tree", a.tree)?,
        scale: a.scale,
        softcap: a.softcap,
        sinks: optional("sinks", a.sinks)?,
    })
}

fn linear(a: &WlLinearArgs) -> Result<LinearArgs<'static>> {
    reserved(a.reserved)?;
    let norm = match optional("norm_weight", a.norm_weight)? {
        Some(weight) => {
            Some(LinearNorm { weight, eps: a.norm_eps, stats: view("norm_stats", a.norm_stats)? })
        }
        None => {
            none("norm_stats", a.norm_stats, "norm_weight")?;
            zero("norm_eps", a.norm_eps, "norm_weight")?;
            None
        }
    };
    Ok(LinearArgs {
        dtype: dtype("dtype", a.dtype)?,
        rows: size("rows", a.rows)?,
        inputs: size("inputs", a.inputs)?,
        x: rows("x", a.x)?,
        x_scales: optional("x_scales", a.x_scales)?,
        positions: optional("positions", a.positions)?,
        prefetch: flag("prefetch", a.prefetch)?,
        norm,
        projections: projections(&a.projections)?,
        epilogue: epilogue(a.epilogue)?,
        out: rows_mut("out", a.out)?,
        out_stats: optional_mut("out_stats", a.out_stats)?,
    })
}

/// Memory that is not there yet, where only sizes are asked for: as large as any, at an address as even as any.
fn stand_in(view: &mut WlView) {
    if !is_given(*view) {
        *view = WlView { address: 256, bytes: i64::MAX as u64 - 256 };
    }
}

/// Bytes of scratch of attention of few rows.
///
/// # Safety
/// The pointers point to what their types say, or are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_attention_decode_scratch(
    stream: *const WlStream,
    args: *const WlAttentionDecodeArgs,
    bytes: *mut u64,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        call(stream, args, |on, a| {
            let kernel = on.device.kernels.attention_decode.on(&on.device)?;
            let mut a = *a;
            let views = [&mut a.q.view, &mut a.out.view, &mut a.k, &mut a.v, &mut a.table.view];
            views.into_iter().chain([&mut a.lengths, &mut a.offsets]).for_each(stand_in);
            let needed = kernel.check(&attention_decode(&a)?)?;
            *place(bytes, "bytes")? = needed as u64;
            Ok(())
        })
    }
}

/// The most scratch of attention of few rows.
///
/// # Safety
/// The pointers point to what their types say, or are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_attention_decode_most_scratch(
    stream: *const WlStream,
    sequences: u64,
    max_rows: u64,
    heads: u64,
    head_dim: u64,
    kv_heads: u64,
    max_keys: u64,
    bytes: *mut u64,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (on, bytes) = unsafe { (given(stream, "stream")?, place(bytes, "bytes")?) };
        let kernel = on.device.kernels.attention_decode.on(&on.device)?;
        let (head_dim, kv_heads) = (size("head_dim", head_dim)?, size("kv_heads", kv_heads)?);
        let layout = PageLayout::slots_first(1, 8, kv_heads, head_dim);
        let (sequences, max_rows, heads, max_keys) = (
            size("sequences", sequences)?,
            size("max_rows", max_rows)?,
            size("heads", heads)?,
            size("max_keys", max_keys)?,
        );
        *bytes = kernel.check_most_scratch(sequences, max_rows, heads, &layout, max_keys)? as u64;
        Ok(())
    })
}

/// Bytes of scratch of a product of few rows.
///
/// # Safety
/// The pointers point to what their types say, or are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_linear_scratch(
    stream: *const WlStream,
    args: *const WlLinearArgs,
    bytes: *mut u64,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        call(stream, args, |on, a| {
            let kernel = on.device.kernels.linear.on(&on.device)?;
            let mut a = *a;
            [&mut a.x.view, &mut a.out.view].into_iter().for_each(stand_in);
            let there = a.projections.iter_mut().filter(|projection| projection.features > 0);
            there.for_each(|projection| stand_in(&mut projection.weight.view));
            let needed = kernel.check(&linear(&a)?)?;
            *place(bytes, "bytes")? = needed as u64;
            Ok(())
        })
    }
}

/// Bytes of scratch of the choice of tokens.
///
/// # Safety
/// `bytes` points to what its type says, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_sample_scratch(rows: u64, vocab: u64, bytes: *mut u64) -> i32 {
    status(|| {
        let needed = Sample::check_sizes(size("rows", rows)?, size("vocab", vocab)?)?;
        // SAFETY: the caller's promise.
        unsafe { *place(bytes, "bytes")? = needed as u64 };
        Ok(())
    })
}

/// Bytes of scratch of a step of AdamW.
///
/// # Safety
/// `bytes` points to what its type says, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_adamw_scratch(count: u64, bytes: *mut u64) -> i32 {
    status(|| {
        let needed = Adamw::check_count(size("count", count)?)?;
        // SAFETY: the caller's promise.
        unsafe { *place(bytes, "bytes")? = needed as u64 };
        Ok(())
    })
}
