//! Attention of few query rows over paged keys and values: `cuda/kernels/attention_decode.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, PageLayout, PageTable, Rows, RowsMut,
    attention::{self, Shape, mask},
    geometry::{Geometry, geometry},
    manifest::{About, texts},
    pages,
    params::{
        WL_ATTENTION_DECODE_MAX_ROWS, WL_ATTENTION_MAX_KEYS, WL_ATTENTION_SEGMENT_KEYS,
        WL_ATTENTION_SPLIT_KEYS, WL_VERSION, WlAttentionDecode,
    },
};
use crate::{
    driver::{Driver, Function, Launch, Stream, View, ViewMut},
    error::Result,
    mask::Mask,
};

const SPLIT: usize = WL_ATTENTION_SPLIT_KEYS as usize;
const SEGMENT: usize = WL_ATTENTION_SEGMENT_KEYS as usize;

/// out = softmax(scale · q kᵀ) v over the keys that each row sees, for 1 to 64 rows per sequence: plain decoding and the verification
/// of drafts. FlashAttention, arXiv 2205.14135; split over keys as Flash-Decoding.
///
/// A row's bits depend on what it sees alone: not on the rows beside it, its slot, the pages, `max_keys`, or how the keys are divided
/// among CTAs. (With a tree, accepted keys lie in other slots than in plain decoding: results are right, bits may differ.)
///
/// What the device memory must hold, and what becomes of rows where it does not, is told at
/// [`WlAttentionDecode`](super::params::WlAttentionDecode).
#[derive(Clone, Debug)]
pub struct AttentionDecode {
    /// How keys are divided among CTAs. Any way gives the same bits.
    pub parts: AttentionParts,
    functions: Half<Functions>,
    multiprocessors: usize,
}

#[derive(Clone, Debug)]
struct Functions {
    /// Of head_dim to 64, 128, 256: by splits, by segments.
    attend: [[Function; 2]; 3],
    combine: Function,
}

/// How keys are divided among CTAs. The results are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionParts {
    /// Segments where they give every multiprocessor work, else splits.
    #[default]
    Auto,
    /// A CTA for each 128 keys.
    Splits,
    /// A CTA for each 2048 keys.
    Segments,
}

/// What [`AttentionDecode::launch`] takes.
#[derive(Debug)]
pub struct AttentionDecodeArgs<'b> {
    /// Type of q, k, v and out: bf16 or f16.
    pub dtype: Dtype,
    /// Rows of all sequences together.
    pub tokens: usize,
    /// Number of sequences, to 65535.
    pub sequences: usize,
    /// Query heads, a multiple of the layout's kv_heads.
    pub heads: usize,
    /// `[tokens, heads, head_dim]`, rows of a multiple of 8 elements: of a fused qkv, say.
    pub q: Rows<'b>,
    /// `[tokens, heads, head_dim]`, rows of a multiple of 8 elements. A row that sees nothing becomes 0.
    pub out: RowsMut<'b>,
    /// f32 `[heads, tokens]`: ln Σ exp(score) of each row, the sink's included; −∞ for a row that sees nothing.
    pub lse: Option<ViewMut<'b>>,
    /// Shape of k and of v. head_dim is a multiple of 8 up to 256: 64, 128 and 256 are whole tiles, others are computed as the next of
    /// these, with zeros that are not read. Strides are multiples of 8.
    pub layout: PageLayout,
    /// Keys of all pages.
    pub k: View<'b>,
    /// Values of all pages.
    pub v: View<'b>,
    /// The pages of each sequence.
    pub table: PageTable<'b>,
    /// i32 `[sequences]`: each sequence's row of `table`. None: its own number.
    pub slots: Option<View<'b>>,
    /// i32 `[sequences]`: keys of each sequence, those of its rows included.
    pub lengths: View<'b>,
    /// i32 `[sequences + 1]`: the rows of sequence s are `offsets[s]..offsets[s + 1]`.
    pub offsets: View<'b>,
    /// i32 `[tokens]`: absolute position of each row; negative for one that is dead. None: a sequence's last row has its last key.
    pub positions: Option<View<'b>>,
    /// Most rows of a sequence, 1 to 64.
    pub max_rows: usize,
    /// Most keys of a sequence. The device has the true numbers; this one bounds them.
    pub max_keys: usize,
    /// What rows see.
    pub mask: Mask,
    /// i32 `[tokens]`: first position of each row's document, before which it sees nothing.
    pub documents: Option<View<'b>>,
    /// u64 `[tokens]`: bit j permits key length − 64 + j, on top of the mask. Keys before the last 64 need no bit.
    pub tree: Option<View<'b>>,
    /// Factor of q · k, commonly 1/√head_dim; to 1e30 in magnitude.
    pub scale: f32,
    /// Scores become softcap · tanh(score / softcap), for 1e-6 to 1e30; 0 leaves them.
    pub softcap: f32,
    /// f32 `[heads]`: logits that join the softmax without a value, to 2e38 in magnitude.
    pub sinks: Option<View<'b>>,
}

/// Of a width, the most warps that share tiles; columns of warps, which take splits in turn; tiles of the ring, and of
/// each warp's query: 16 keys, or packed rows (query rows × query heads of a kv head), each. In shared memory are these
/// and what is merged.
///
/// `part_count`: those that all keys make; `seen`: those that a row sees, unless its sequence's rows lie far apart; an
/// interval is in one part more than its length fills.
macro_rules! attend {
    ($width:literal, $most_warps:literal, $columns:literal, $ring:literal, $query:literal) => {
        geometry! {
            WlAttentionDecode { tokens, sequences, max_rows, max_keys, heads, kv_heads, head_dim, part_keys, mask }
            [WL_CAUSAL, WL_OVERLAP, WL_BLOCKWISE, WL_FULL]
            let pattern = mask.pattern;
            let keys = mask.keys;
            let prefix = mask.prefix;
            let span = select(pattern == WL_OVERLAP, 2 * keys, select(pattern == WL_BLOCKWISE, 2 * keys, keys));
            let part_count = ceil_div(max_keys, part_keys);
            let interval = min(ceil_div(span + max_rows, part_keys) + 1 + ceil_div(prefix, part_keys), part_count);
            let seen = select(pattern == WL_CAUSAL, part_count, select(pattern == WL_FULL, part_count, interval));
            let packed = max_rows * (heads / kv_heads);
            let warps = min(pow2_ceil(ceil_div(packed, 16)), $most_warps);
            let blocks = ceil_div(packed, 16 * warps);
            let tile = 16 * $width * 2;
            let query = $query;
            grid: [seen, blocks * kv_heads, sequences],
            block: 32 * warps * $columns,
            shared: ($ring + query * warps) * tile + warps * 16 * ($width + 8) * 4,
            scratch: {
                parts: select(part_count == 1, 0, tokens * heads * part_count * head_dim * 4), 0;
                sums: select(part_count == 1, 0, tokens * heads * part_count * 8), 0;
            },
        }
    };
}

/// For head_dim to 64, 128, 256: by splits, by segments.
const ATTEND: [[Geometry<WlAttentionDecode>; 2]; 3] = [
    [attend!(64, 4, 1, 16, 0), attend!(64, 4, 2, 16, 0)],
    [attend!(128, 4, 1, 16, 0), attend!(128, 4, 2, 16, 0)],
    [attend!(256, 2, 1, 4, 1), attend!(256, 2, 2, 4, 1)],
];

/// After the parts that rows see.
const COMBINE: Geometry<WlAttentionDecode> = geometry! {
    WlAttentionDecode { tokens, sequences, max_rows, max_keys, heads, head_dim, part_keys, mask }
    [WL_ATTENTION_SEGMENT_KEYS, WL_ATTENTION_COMBINE_WARPS, WL_CAUSAL, WL_OVERLAP, WL_BLOCKWISE, WL_FULL]
    let pattern = mask.pattern;
    let keys = mask.keys;
    let prefix = mask.prefix;
    let span = select(pattern == WL_OVERLAP, 2 * keys, select(pattern == WL_BLOCKWISE, 2 * keys, keys));
    let part_count = ceil_div(max_keys, part_keys);
    let interval = min(ceil_div(span + max_rows, part_keys) + 1 + ceil_div(prefix, part_keys), part_count);
    let seen = select(pattern == WL_CAUSAL, part_count, select(pattern == WL_FULL, part_count, interval));
    let segments = ceil_div(seen * part_keys, WL_ATTENTION_SEGMENT_KEYS);
    grid: [heads * ceil_div(head_dim, 128), max_rows, sequences],
    block: 32 * min(segments, WL_ATTENTION_COMBINE_WARPS),
    shared: 0,
    scratch: {
        parts: tokens * heads * part_count * head_dim * 4, 0;
        sums: tokens * heads * part_count * 8, 0;
    },
};

/// Of an entry other than the combine step, the place in [`ATTEND`].
fn class(entry: &str) -> Option<(usize, usize)> {
    let width = ["_64_", "_128_", "_256_"].iter().position(|width| entry.contains(width));
    width.map(|width| (width, usize::from(entry.ends_with("_segment"))))
}

/// Most dynamic shared memory of the kernel's entries.
pub(super) fn dynamic_shared_bytes(entry: &str) -> usize {
    // Of so many rows that all warps have some.
    let most = WlAttentionDecode {
        max_rows: 64,
        heads: 1,
        kv_heads: 1,
        part_keys: 1,
        ..WlAttentionDecode::default()
    };
    class(entry).map_or(0, |(width, way)| ATTEND[width][way].shared_bytes(&most))
}

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let mut requires = attention::requires(entry);
    requires.push("max_rows <= WL_ATTENTION_DECODE_MAX_ROWS".into());
    let Some((width, way)) = class(entry) else {
        let split = "(part_keys == WL_ATTENTION_SPLIT_KEYS) + (part_keys == WL_ATTENTION_SEGMENT_KEYS)";
        requires.extend(texts(&[split, "part_keys < max_keys"]));
        return About {
            when: "after the launch of the parts, with the same parameter, unless part_keys keys are all",
            requires,
            always: true,
            ..About::new(
                "WlAttentionDecode",
                "puts together what attention gave for parts of the keys",
                COMBINE.text,
            )
        };
    };
    let keys = ["WL_ATTENTION_SPLIT_KEYS", "WL_ATTENTION_SEGMENT_KEYS"][way];
    requires.extend([format!("head_dim <= {}", 64 << width), format!("part_keys == {keys}")]);
    requires.push("blocks * kv_heads <= 65535".into());
    let when = [
        "with the smallest width that holds head_dim. Splits and segments give the same bits; warploom takes segments \
         where max_keys is over WL_ATTENTION_SPLIT_KEYS and their grid has as many CTAs as the GPU has \
         multiprocessors, else splits. The combine step follows, unless part_keys keys are all. Any number of CTAs along \
         x is right",
        "for longer keys than _split, whose entry says when; all else is as there",
    ][way];
    About {
        when,
        requires,
        ..About::new(
            "WlAttentionDecode",
            "attention of 1 to 64 rows a sequence over paged keys and values",
            ATTEND[width][way].text,
        )
    }
}

/// How a launch is divided.
struct Plan {
    /// The place in [`ATTEND`].
    class: (usize, usize),
    /// Sizes and the mask: what geometry depends on.
    p: WlAttentionDecode,
}

impl Plan {
    /// Of shapes that have been checked.
    fn of(args: &AttentionDecodeArgs, parts: AttentionParts, multiprocessors: usize) -> Plan {
        let &AttentionDecodeArgs { tokens, sequences, heads, max_rows, max_keys, .. } = args;
        let PageLayout { kv_heads, head_dim, .. } = args.layout;
        let mut p = WlAttentionDecode {
            tokens: tokens as i32,
            sequences: sequences as i32,
            max_rows: max_rows as i32,
            max_keys: max_keys as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            part_keys: SEGMENT as i32,
            mask: mask(&args.mask),
            ..WlAttentionDecode::default()
        };
        let width = usize::from(head_dim > 64) + usize::from(head_dim > 128);
        let ctas: u64 = ATTEND[width][1].grid(&p).into_iter().map(u64::from).product();
        let segments = match parts {
            AttentionParts::Splits => false,
            AttentionParts::Segments => true,
            AttentionParts::Auto => max_keys > SPLIT && ctas >= multiprocessors as u64,
        };
        if !segments {
            p.part_keys = SPLIT as i32;
        }
        Plan { class: (width, usize::from(segments)), p }
    }

    fn geometry(&self) -> &'static Geometry<WlAttentionDecode> {
        &ATTEND[self.class.0][self.class.1]
    }

    /// Bytes of the parts' elements, a multiple of 32, and of their sums; none where one part is everything.
    fn scratch(&self) -> Option<[usize; 2]> {
        self.geometry().scratch(&self.p)
    }
}

/// Refuses sizes that no launch can have.
fn check(args: &AttentionDecodeArgs) -> Result<()> {
    let shape = Shape {
        tokens: args.tokens,
        sequences: args.sequences,
        heads: args.heads,
        q_stride: args.q.stride,
        out_stride: args.out.stride,
        layout: &args.layout,
        mask: &args.mask,
        scale: args.scale,
        softcap: args.softcap,
    };
    shape.check()?;
    check_most(args.max_rows, args.max_keys)
}

fn check_most(max_rows: usize, max_keys: usize) -> Result<()> {
    Check::of("max_rows").count(max_rows, 1..=WL_ATTENTION_DECODE_MAX_ROWS as usize)?;
    Check::of("max_keys").count(max_keys, 1..=WL_ATTENTION_MAX_KEYS as usize)?;
    Ok(())
}

/// What [`AttentionDecode::most_scratch`] says, of a device on which no kernel is loaded yet.
pub(crate) fn most_scratch(
    parts: AttentionParts,
    multiprocessors: usize,
    sequences: usize,
    max_rows: usize,
    heads: usize,
    layout: &PageLayout,
    max_keys: usize,
) -> usize {
    let bytes = |sequences: usize, part_keys: usize| {
        let rows = sequences.saturating_mul(max_rows).saturating_mul(heads);
        let part = layout.head_dim.saturating_mul(4).saturating_add(8);
        match max_keys.div_ceil(part_keys) {
            1 => 0,
            parts => rows.saturating_mul(parts).saturating_mul(part),
        }
    };
    // Where there is no choice, and as long as segments may be too few for all multiprocessors, a part is a split.
    let few = multiprocessors.saturating_sub(1) / layout.kv_heads.max(1);
    match parts {
        AttentionParts::Segments => bytes(sequences, SEGMENT),
        AttentionParts::Splits => bytes(sequences, SPLIT),
        AttentionParts::Auto => bytes(sequences, SEGMENT).max(bytes(sequences.min(few), SPLIT)),
    }
}

impl AttentionDecode {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "attention_decode")?;
        let functions = Half::load(|t| {
            let of = |what: &str| module.function(&format!("wl_attention_decode_{t}_{what}"));
            Ok(Functions {
                attend: [
                    [of("64_split")?, of("64_segment")?],
                    [of("128_split")?, of("128_segment")?],
                    [of("256_split")?, of("256_segment")?],
                ],
                combine: of("combine")?,
            })
        })?;
        let multiprocessors = driver.properties().multiprocessors as usize;
        Ok(AttentionDecode { parts: AttentionParts::Auto, functions, multiprocessors })
    }

    /// Bytes of scratch that a launch needs; 0 for sizes that a launch refuses. With more keys, sequences or rows it may need fewer.
    pub fn scratch_bytes(&self, args: &AttentionDecodeArgs) -> usize {
        let plan = |()| Plan::of(args, self.parts, self.multiprocessors);
        let scratch = check(args).ok().map(plan).and_then(|plan| plan.scratch());
        scratch.map_or(0, |[elements, sums]| elements + sums)
    }

    /// The most that [`AttentionDecode::scratch_bytes`] says for up to so many sequences of up to so many rows, whatever the mask.
    pub fn most_scratch(
        &self,
        sequences: usize,
        max_rows: usize,
        heads: usize,
        layout: &PageLayout,
        max_keys: usize,
    ) -> usize {
        most_scratch(self.parts, self.multiprocessors, sequences, max_rows, heads, layout, max_keys)
    }

    /// [`AttentionDecode::most_scratch`], of sizes that a launch can have.
    #[cfg(feature = "capi")]
    pub(crate) fn check_most_scratch(
        &self,
        sequences: usize,
        max_rows: usize,
        heads: usize,
        layout: &PageLayout,
        max_keys: usize,
    ) -> Result<usize> {
        let (tokens, q_stride, out_stride, scale, softcap) = (0, 0, 0, 1.0, 0.0);
        let mask = &Mask::CAUSAL;
        Shape { tokens, sequences, heads, q_stride, out_stride, layout, mask, scale, softcap }.check()?;
        check_most(max_rows, max_keys)?;
        match self.most_scratch(sequences, max_rows, heads, layout, max_keys) {
            bytes if bytes > isize::MAX as usize => {
                Check::of("max_keys").refuse(format!("{max_keys}; their parts exceed the address space"))
            }
            bytes => Ok(bytes),
        }
    }

    /// Bytes of scratch of a launch that nothing else would be refused of.
    #[cfg(feature = "capi")]
    pub(crate) fn check(&self, args: &AttentionDecodeArgs) -> Result<usize> {
        let (_, _, _, [elements, sums]) = self.prepare(args)?;
        Ok(elements + sums)
    }

    /// The functions of the launch's type, how it is divided, its parameter but for the scratch, and bytes of the parts'
    /// elements and sums.
    fn prepare(
        &self,
        args: &AttentionDecodeArgs,
    ) -> Result<(&Functions, Plan, WlAttentionDecode, [usize; 2])> {
        check(args)?;
        let &AttentionDecodeArgs { dtype, tokens, sequences, heads, max_keys, layout, table, .. } = args;
        let PageLayout { kv_heads, head_dim, .. } = layout;
        let functions = self.functions.of(dtype)?;
        let plan = Plan::of(args, self.parts, self.multiprocessors);
        if plan.geometry().grid(&plan.p)[1] > 65535 {
            return Check::of("heads").refuse(format!("{heads} over {kv_heads}; too many for a grid"));
        }
        if args.slots.is_none() && table.sequences < sequences {
            return Check::of("table").refuse(format!("{} rows for {sequences} sequences", table.sequences));
        }
        let array = |name, view: Option<View>, count: usize, size| match view {
            Some(view) => Check::of(name).view(view, count, size),
            None => Ok(0),
        };
        let (k, v) = ((args.k.address(), args.k.bytes()), (args.v.address(), args.v.bytes()));
        let mut p = WlAttentionDecode {
            version: WL_VERSION,
            type_: dtype.code(),
            scale: args.scale,
            softcap: args.softcap,
            slots: array("slots", args.slots, sequences, 4)?,
            lengths: Check::of("lengths").view(args.lengths, sequences, 4)?,
            offsets: Check::of("offsets").view(args.offsets, sequences + 1, 4)?,
            positions: array("positions", args.positions, tokens, 4)?,
            documents: array("documents", args.documents, tokens, 4)?,
            tree: array("tree", args.tree, tokens, 8)?,
            sinks: array("sinks", args.sinks, heads, 4)?,
            pages: pages::check(&layout, &table, dtype, max_keys, k, v)?,
            ..plan.p
        };
        p.table_rows = table.sequences as i32;
        (p.q, p.q_stride) = Check::of("q").rows(&args.q, tokens, heads * head_dim, dtype.size())?;
        (p.out, p.out_stride) =
            Check::of("out").rows_mut(&args.out, tokens, heads * head_dim, dtype.size())?;
        if let Some(lse) = &args.lse {
            p.lse = Check::of("lse").view_mut(lse, heads * tokens, 4)?;
        }
        match plan.scratch() {
            Some(scratch) => Ok((functions, plan, p, scratch)),
            None => Check::of("max_keys").refuse(format!("{max_keys}; their parts exceed the address space")),
        }
    }

    /// Enqueues the kernel, and the combine step where keys may be in several parts. `scratch` has
    /// [`AttentionDecode::scratch_bytes`]; its contents do not matter.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &AttentionDecodeArgs, scratch: ViewMut) -> Result<()> {
        let (functions, plan, mut p, [elements, sums]) = self.prepare(args)?;
        let several = p.part_keys < p.max_keys;
        if several {
            p.parts = Check::of("scratch").bytes(&scratch, elements + sums)?;
            p.sums = p.parts + elements as u64;
        }
        if args.tokens == 0 || args.sequences == 0 {
            return Ok(());
        }

        let function = &functions.attend[plan.class.0][plan.class.1];
        // SAFETY: the sizes above cover all rows, pages and parts; of what it reads as an index from memory, the kernel takes nothing
        // that is out of range.
        unsafe { stream.launch(function, &plan.geometry().launch(&p))? };
        if !several {
            return Ok(());
        }
        // It reads nothing but what the parts' kernel leaves, and waits for that.
        let launch = Launch { programmatic: true, ..COMBINE.launch(&p) };
        // SAFETY: as above.
        unsafe { stream.launch(&functions.combine, &launch) }
    }
}
