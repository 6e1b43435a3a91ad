//! Attention of decode rows and of prompts, and the writing of keys and values before it.

use super::{PAGE, Shapes, Survey, bytes};
use crate::{
    driver::Buffer,
    error::Result,
    kernels::{
        AttentionDecodeArgs, AttentionParts, AttentionPrefillArgs, PageLayout, PageTable, RopeAppendArgs,
        RowsMut,
    },
    mask::Mask,
};

/// Most keys of attention with heads that are not the model's.
pub(super) const MOST_OTHER_KEYS: usize = 4096;
/// Rows of a prompt with such heads.
const OTHER_ROWS: usize = 64;
/// Widths of a head that have kernels of their own.
const WIDTHS: [usize; 4] = [64, 96, 128, 256];

/// Keys and values of one sequence and the rows that go with them.
struct Cache {
    layout: PageLayout,
    k: Buffer,
    v: Buffer,
    table: Buffer,
    slot: Buffer,
    lengths: Buffer,
    offsets: Buffer,
    positions: Buffer,
}

impl Cache {
    /// `rows` rows that are the last of `keys` positions.
    fn new(survey: &Survey, head_dim: usize, rows: usize, keys: usize) -> Result<Self> {
        let shapes = &survey.shapes;
        let layout = PageLayout::heads_first(keys.div_ceil(PAGE), PAGE, shapes.kv_heads, head_dim);
        let bytes = layout.pages * layout.page_stride * shapes.dtype.size();
        Ok(Cache {
            layout,
            k: survey.filled(bytes)?,
            v: survey.filled(bytes)?,
            table: survey.numbers(0..layout.pages)?,
            slot: survey.numbers([0])?,
            lengths: survey.numbers([keys])?,
            offsets: survey.numbers([0, rows])?,
            positions: survey.numbers(keys - rows..keys)?,
        })
    }

    fn table(&self) -> PageTable<'_> {
        PageTable { view: self.table.view(), sequences: 1, stride: self.layout.pages }
    }
}

/// With the model's heads as the GPU backend does it, and divided the other way; then with heads of other widths.
pub(super) fn decode(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    attend(survey, shapes.head_dim, shapes.context, AttentionParts::Auto, true)?;
    let few = shapes.context.clamp(256, MOST_OTHER_KEYS);
    for width in [shapes.head_dim, 64, 128, 256] {
        for (parts, name) in [(AttentionParts::Splits, "split"), (AttentionParts::Segments, "segment")] {
            let class = width.next_power_of_two().max(64);
            if !survey.launched(&format!("_{class}_{name}")) || !survey.launched("_combine") {
                attend(survey, width, few, parts, false)?;
            }
        }
    }
    Ok(())
}

fn attend(
    survey: &mut Survey,
    head_dim: usize,
    keys: usize,
    parts: AttentionParts,
    of_model: bool,
) -> Result<()> {
    let shapes = survey.shapes;
    let (rows, heads) = (shapes.rows, shapes.heads);
    let width = heads * head_dim;
    let mask = if of_model { shapes.mask } else { Mask::CAUSAL };
    // Those that any of the rows sees.
    let first = mask.visible(keys - rows, keys, 0);
    let seen = keys.min(first.prefix + keys - first.lo);
    let cache = Cache::new(survey, head_dim, rows, keys)?;
    let q = survey.matrix(rows, width)?;
    let mut out = survey.matrix(rows, width)?;
    let args = AttentionDecodeArgs {
        dtype: shapes.dtype,
        tokens: rows,
        sequences: 1,
        heads,
        q: q.rows(),
        out: out.rows_mut(),
        lse: None,
        layout: cache.layout,
        k: cache.k.view(),
        v: cache.v.view(),
        table: cache.table(),
        slots: Some(cache.slot.view()),
        lengths: cache.lengths.view(),
        offsets: cache.offsets.view(),
        positions: Some(cache.positions.view()),
        max_rows: rows,
        max_keys: keys.next_multiple_of(PAGE),
        mask,
        documents: None,
        tree: None,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: 0.0,
        sinks: None,
    };
    let mut attention = survey.kernels.attention_decode.clone();
    attention.parts = parts;
    let scratch_bytes = attention.scratch_bytes(&args);
    let mut scratch = survey.filled(scratch_bytes)?;
    let size = shapes.dtype.size();
    let (read, written) =
        (rows * width * size + 2 * seen * shapes.kv_heads * head_dim * size, rows * width * size);
    // What parts of the keys gave is put together by a launch of its own.
    let compulsory = match scratch_bytes {
        0 => [bytes(read, written), bytes(0, 0)],
        _ => [bytes(read, 0), bytes(0, written)],
    };
    survey.launch(&what(survey, rows, keys, head_dim, mask), of_model, &compulsory, |_, stream| {
        attention.launch(stream, &args, scratch.view_mut())
    })
}

fn what(survey: &Survey, rows: usize, keys: usize, head_dim: usize, mask: Mask) -> String {
    let rows = if rows == 1 { "1 row".to_string() } else { format!("{rows} rows") };
    let mask = if mask == Mask::CAUSAL { String::new() } else { format!(", {mask}") };
    let Shapes { heads, kv_heads, .. } = survey.shapes;
    format!("{rows}, {keys} keys, {heads} heads on {kv_heads} of {head_dim}{mask}")
}

/// A prompt with the model's heads, and fewer rows with heads of other widths.
pub(super) fn prefill(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    if shapes.prompt > 0 {
        attend_prompt(survey, shapes.head_dim, shapes.prompt, true)?;
    }
    for width in WIDTHS {
        if !survey.launched(&format!("_{width}")) {
            attend_prompt(survey, width, OTHER_ROWS, false)?;
        }
    }
    Ok(())
}

fn attend_prompt(survey: &mut Survey, head_dim: usize, rows: usize, of_model: bool) -> Result<()> {
    let shapes = survey.shapes;
    let heads = shapes.heads;
    let width = heads * head_dim;
    let mask = if of_model { shapes.mask } else { Mask::CAUSAL };
    let cache = Cache::new(survey, head_dim, rows, rows)?;
    let q = survey.matrix(rows, width)?;
    let mut out = survey.matrix(rows, width)?;
    let size = shapes.dtype.size();
    let compulsory =
        bytes(rows * width * size + 2 * rows * shapes.kv_heads * head_dim * size, rows * width * size);
    let args = AttentionPrefillArgs {
        dtype: shapes.dtype,
        tokens: rows,
        sequences: 1,
        heads,
        q: q.rows(),
        out: out.rows_mut(),
        lse: None,
        layout: cache.layout,
        k: cache.k.view(),
        v: cache.v.view(),
        table: cache.table(),
        slots: Some(cache.slot.view()),
        lengths: cache.lengths.view(),
        offsets: cache.offsets.view(),
        positions: Some(cache.positions.view()),
        max_rows: rows,
        max_keys: rows.next_multiple_of(PAGE),
        mask,
        documents: None,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: 0.0,
        sinks: None,
    };
    survey.launch(&what(survey, rows, rows, head_dim, mask), of_model, &[compulsory], |kernels, stream| {
        kernels.attention_prefill.launch(stream, &args)
    })
}

/// Of the decode rows, and of a prompt's.
pub(super) fn rope_append(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    let (width, q, kv) = shapes.widths();
    for (rows, keys) in [(shapes.rows, shapes.context), (shapes.prompt, shapes.prompt)] {
        if rows == 0 {
            continue;
        }
        let mut cache = Cache::new(survey, shapes.head_dim, rows, keys)?;
        let mut qkv = survey.matrix(rows, width)?;
        let slots = survey.numbers(std::iter::repeat_n(0, rows))?;
        let frequencies = survey.filled(4 * (shapes.head_dim / 2))?;
        let size = shapes.dtype.size();
        let read = rows * (width * size + 8) + frequencies.bytes();
        let compulsory = bytes(read, rows * (q + 2 * kv) * size);
        let args = RopeAppendArgs {
            dtype: shapes.dtype,
            rows,
            heads: shapes.heads,
            qkv: RowsMut { view: qkv.memory.view_mut(), stride: width },
            positions: cache.positions.view(),
            slots: slots.view(),
            frequencies: frequencies.view(),
            magnitude: 1.0,
            layout: cache.layout,
            k: cache.k.view_mut(),
            v: cache.v.view_mut(),
            table: PageTable { view: cache.table.view(), sequences: 1, stride: cache.layout.pages },
        };
        let what =
            format!("{rows} × {width}, {} heads on {} of {}", shapes.heads, shapes.kv_heads, shapes.head_dim);
        survey.launch(&what, true, &[compulsory], |kernels, stream| {
            kernels.rope_append.launch(stream, &args)
        })?;
    }
    Ok(())
}
