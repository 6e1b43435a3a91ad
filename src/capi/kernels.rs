//! A function for each kernel.

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
        Dtype, E4m3Rows, EmbedArgs, GemmArgs, GemmProjection, LinearArgs, LinearEpilogue, LinearNorm,
        LinearProjection, PageLayout, PageTable, QuantizeFp8RowsArgs, RmsNormArgs, RopeAppendArgs, RoundRows,
        RowTable, Rows, RowsMut, Sample, SampleArgs, SamplePass, SwigluArgs,
        params::{
            WL_BF16, WL_BLOCK, WL_BLOCKWISE, WL_CAUSAL, WL_CHUNK, WL_E4M3, WL_F16, WL_F32, WL_FULL,
            WL_LINEAR_ADD, WL_LINEAR_STORE, WL_LINEAR_STORE_F32, WL_LINEAR_SWIGLU, WL_OVERLAP,
            WL_SAMPLE_DRAFT, WL_SAMPLE_VERIFY, WL_WINDOW, WlMask,
        },
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
        other => {
            refuse(argument, format!("{other}; the types are WL_BF16 to WL_E4M3, {WL_BF16} to {WL_E4M3}"))
        }
    }
}

fn is_given(view: WlView) -> bool {
    view.address != 0
}

/// None for a view that is none.
fn optional(argument: &'static str, of: WlView) -> Result<Option<View<'static>>> {
    is_given(of).then(|| view(argument, of)).transpose()
}

fn optional_mut(argument: &'static str, of: WlView) -> Result<Option<ViewMut<'static>>> {
    is_given(of).then(|| view_mut(argument, of)).transpose()
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

/// Scratch may be none where none is needed; the launch refuses what is too small.
fn scratch(of: WlView) -> Result<ViewMut<'static>> {
    Ok(optional_mut("scratch", of)?.unwrap_or_else(nothing))
}

/// A bound of e4m3, of which 0 is none.
fn bound(value: f32) -> Option<f32> {
    (value != 0.0).then_some(value)
}

fn e4m3(argument: &'static str, q: WlMatrix, scales: WlView, of: f32) -> Result<E4m3Rows<'static>> {
    Ok(E4m3Rows { q: rows_mut(argument, q)?, scales: view_mut("scales", scales)?, bound: bound(of) })
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
    let (sequences, stride) = (size("page table", of.sequences)?, size("page table", of.stride)?);
    Ok(PageTable { view: view("page table", of.view)?, sequences, stride })
}

fn mask(of: &WlMask) -> Result<Mask> {
    let count = |argument: &'static str, value: i32| match usize::try_from(value) {
        Ok(count) => Ok(count),
        Err(_) => refuse(argument, format!("{value}; supported are numbers from 0")),
    };
    let (keys, prefix) = (count("mask.keys", of.keys)?, count("mask.prefix", of.prefix)?);
    let pattern = match of.pattern {
        WL_CAUSAL => Pattern::Causal,
        WL_WINDOW => Pattern::Window { keys },
        WL_CHUNK => Pattern::Chunk { keys },
        WL_OVERLAP => Pattern::Overlap { keys },
        WL_BLOCKWISE => Pattern::Blockwise { keys },
        WL_BLOCK => Pattern::Block { keys },
        WL_FULL => Pattern::Full,
        other => {
            return refuse("mask.pattern", format!("{other}; the patterns are {WL_CAUSAL} to {WL_FULL}"));
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
        other => refuse("epilogue", format!("{other}; there are {WL_LINEAR_STORE} to {WL_LINEAR_SWIGLU}")),
    }
}

fn projections(of: &[WlProjectionArgs; 3]) -> Result<[Option<LinearProjection<'static>>; 3]> {
    let mut found = [None; 3];
    for (to, of) in found.iter_mut().zip(of).take_while(|(_, of)| is_given(of.weight.view)) {
        *to = Some(LinearProjection {
            weight: rows("weight", of.weight)?,
            scales: optional("scales", of.scales)?,
            bias: optional("bias", of.bias)?,
            features: size("features", of.features)?,
            column: size("column", of.column)?,
        });
    }
    Ok(found)
}

fn row_table(argument: &'static str, of: &WlRowTable) -> Result<RowTable<'static>> {
    Ok(RowTable {
        tokens: view_mut(argument, of.tokens)?,
        positions: view_mut(argument, of.positions)?,
        sequences: view_mut(argument, of.sequences)?,
    })
}

fn round_rows(of: &WlRoundRows) -> Result<RoundRows<'static>> {
    Ok(RoundRows {
        steps: size("steps", of.steps)?,
        draft_rows: size("draft_rows", of.draft_rows)?,
        draft: row_table("draft", &of.draft)?,
        verify_rows: size("verify_rows", of.verify_rows)?,
        verify: row_table("verify", &of.verify)?,
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
        let kernel = on.device.kernels.rms_norm.on(&on.device)?;
        let of = dtype("dtype", a.dtype)?;
        let residual = match is_given(a.residual.view) {
            true => Some((rows("residual", a.residual)?, rows_mut("new_residual", a.new_residual)?)),
            false => None,
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
                let y = e4m3("y", a.y, a.y_scales, a.y_bound)?;
                kernel.launch_e4m3(&on.stream, &args.with(y))?;
            }
            other if other == of => kernel.launch(&on.stream, &args.with(rows_mut("y", a.y)?))?,
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
                let out = e4m3("out", a.out, a.out_scales, a.out_bound)?;
                kernel.launch_e4m3(&on.stream, &args.with(out))?;
            }
            other if other == of => kernel.launch(&on.stream, &args.with(rows_mut("out", a.out)?))?,
            other => return refuse("out_dtype", format!("{other}; supported are dtype, {of}, and e4m3")),
        }
    }

    /// Rows to e4m3.
    wl_quantize_fp8_rows(on, a: WlQuantizeFp8RowsArgs) {
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
        kernel.launch(&on.stream, &attention_decode(a)?, scratch(a.scratch)?)?;
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
        kernel.launch(&on.stream, linear(a)?, scratch(a.scratch)?)?;
    }

    /// Products of any number of rows.
    wl_gemm(on, a: WlGemmArgs) {
        let of = |LinearProjection { weight, scales, bias, features, column }| GemmProjection {
            weight,
            scales,
            bias,
            features,
            column,
        };
        on.device.kernels.gemm.on(&on.device)?.launch(&on.stream, GemmArgs {
            dtype: dtype("dtype", a.dtype)?,
            rows: size("rows", a.rows)?,
            inputs: size("inputs", a.inputs)?,
            x: rows("x", a.x)?,
            x_scales: optional("x_scales", a.x_scales)?,
            projections: projections(&a.projections)?.map(|projection| projection.map(of)),
            epilogue: epilogue(a.epilogue)?,
            out: rows_mut("out", a.out)?,
            out_stats: optional_mut("out_stats", a.out_stats)?,
        })?;
    }

    /// The beginning of a round.
    wl_round_begin(on, a: WlRoundBeginArgs) {
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
            WL_SAMPLE_VERIFY => SamplePass::Verify,
            other => return refuse("mode", format!("{other}; there are {WL_SAMPLE_DRAFT} and {WL_SAMPLE_VERIFY}")),
        };
        on.device.kernels.sample.on(&on.device)?.launch(&on.stream, &SampleArgs {
            pass,
            rows: first..end,
            vocab: size("vocab", a.vocab)?,
            logits: rows("logits", a.logits)?,
            round: round_rows(&a.round)?,
            slots: size("slots", a.slots)?,
            states: view_mut("states", a.states)?,
            seen: is_given(a.seen.view).then(|| rows("seen", a.seen)).transpose()?,
            choices: view_mut("choices", a.choices)?,
            probabilities: is_given(a.probabilities.view)
                .then(|| rows_mut("probabilities", a.probabilities))
                .transpose()?,
            hashes: optional_mut("hashes", a.hashes)?,
            scratch: scratch(a.scratch)?,
        })?;
    }

    /// The end of a round.
    wl_accept(on, a: WlAcceptArgs) {
        let logits = match is_given(a.draft_logits.view) {
            true => Some(AcceptLogits {
                steps: size("draft_steps", a.draft_steps)?,
                draft_rows: size("draft_rows", a.draft_rows)?,
                draft: rows("draft_logits", a.draft_logits)?,
                draft_step_stride: size("draft_step_stride", a.draft_step_stride)?,
                verify: rows("verify_logits", a.verify_logits)?,
            }),
            false => None,
        };
        on.device.kernels.accept.on(&on.device)?.launch(&on.stream, &AcceptArgs {
            slots: size("slots", a.slots)?,
            vocab: size("vocab", a.vocab)?,
            states: view_mut("states", a.states)?,
            rounds: view_mut("rounds", a.rounds)?,
            seen: is_given(a.seen.view).then(|| rows_mut("seen", a.seen)).transpose()?,
            draft_choices: view("draft_choices", a.draft_choices)?,
            verify_first: size("verify_first", a.verify_first)?,
            verify_rows: size("verify_rows", a.verify_rows)?,
            verify_choices: view("verify_choices", a.verify_choices)?,
            logits,
        })?;
    }

    /// A step of AdamW.
    wl_adamw(on, a: WlAdamwArgs) {
        on.device.kernels.adamw.on(&on.device)?.launch(&on.stream, AdamwArgs {
            settings: Settings {
                beta1: a.beta1,
                beta2: a.beta2,
                epsilon: a.epsilon,
                weight_decay: a.weight_decay,
            },
            count: size("count", a.count)?,
            weights: view_mut("weights", a.weights)?,
            gradient_dtype: dtype("gradient_dtype", a.gradient_dtype)?,
            gradients: view("gradients", a.gradients)?,
            m: view_mut("m", a.m)?,
            v: view_mut("v", a.v)?,
            copy: optional_mut("copy", a.copy)?,
            step: view("step", a.step)?,
            statistics: view_mut("statistics", a.statistics)?,
            scratch: scratch(a.scratch)?,
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
    let norm = match is_given(a.norm_weight) {
        true => Some(LinearNorm {
            weight: view("norm_weight", a.norm_weight)?,
            eps: a.norm_eps,
            stats: view("norm_stats", a.norm_stats)?,
        }),
        false => None,
    };
    Ok(LinearArgs {
        dtype: dtype("dtype", a.dtype)?,
        rows: size("rows", a.rows)?,
        inputs: size("inputs", a.inputs)?,
        x: rows("x", a.x)?,
        x_scales: optional("x_scales", a.x_scales)?,
        positions: optional("positions", a.positions)?,
        prefetch: a.prefetch != 0,
        norm,
        projections: projections(&a.projections)?,
        epilogue: epilogue(a.epilogue)?,
        out: rows_mut("out", a.out)?,
        out_stats: optional_mut("out_stats", a.out_stats)?,
    })
}

/// Memory that is not there yet, where only sizes are asked for.
fn stand_in(view: &mut WlView) {
    if !is_given(*view) {
        *view = WlView { address: 16, bytes: 0 };
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
            *place(bytes, "bytes")? = kernel.scratch_bytes(&attention_decode(&a)?) as u64;
            Ok(())
        })
    }
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
            *place(bytes, "bytes")? = kernel.scratch_bytes(&linear(&a)?) as u64;
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
        let needed = Sample::scratch_bytes(size("rows", rows)?, size("vocab", vocab)?);
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
        let needed = Adamw::scratch_bytes(size("count", count)?);
        // SAFETY: the caller's promise.
        unsafe { *place(bytes, "bytes")? = needed as u64 };
        Ok(())
    })
}
