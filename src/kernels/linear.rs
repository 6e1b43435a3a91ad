//! Products of few rows with streamed weights: `cuda/kernels/linear.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, texts, type_of, unless, weight_type_of},
    params::{
        WL_E4M3, WL_LINEAR_MOST_SCRATCH, WL_LINEAR_ROWS, WL_LINEAR_SEGMENT_STEP, WL_LINEAR_SEGMENTS,
        WL_VERSION, WlLinear,
    },
    projection::{self, LinearEpilogue, LinearProjection, MOST, Product},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
};

/// out ⟵ x · Wᵀ + bias for 1 to 64 decode rows, each weight read once; with the norm before it and what follows.
///
/// A row's bits depend on its own numbers and on the shapes of the weights, and on nothing else.
pub struct Linear {
    /// By type of x and weights, T or e4m3: for up to 16, 32 and 64 rows, and for rows of weights or x that begin
    /// anywhere.
    functions: [Half<[Function; 4]>; 2],
}

/// What [`Linear::launch`] takes.
#[derive(Debug)]
pub struct LinearArgs<'b> {
    /// Type of x, weights, biases, and of out except with [`LinearEpilogue::StoreF32`]: bf16 or f16.
    pub dtype: Dtype,
    /// Number of rows, up to 64.
    pub rows: usize,
    /// Features of a row of x.
    pub inputs: usize,
    /// `[rows, inputs]`, of e4m3 if there are `x_scales`.
    pub x: Rows<'b>,
    /// f32 `[rows]`: x and the weights are e4m3 with a scale for each row, as
    /// [`QuantizeFp8Rows`](super::QuantizeFp8Rows) makes them. Sums are multiplied by the product of the two scales.
    pub x_scales: Option<View<'b>>,
    /// i32 `[rows]`, negative for a row that is dead: where all are, nothing is computed and nothing written. Dead rows beside others are
    /// computed with them.
    pub positions: Option<View<'b>>,
    /// Whether weights go to L2 while kernels before this one end, on an [overlapping](Stream::set_overlapping) stream: more of them than what
    /// is loaded at once anyway, and for nothing if no row turns out to be alive.
    pub prefetch: bool,
    /// RMSNorm of x before the product; not with `x_scales`.
    pub norm: Option<LinearNorm<'b>>,
    /// Up to three matrices, whose outputs lie side by side.
    pub projections: [Option<LinearProjection<'b>>; 3],
    /// What happens to the finished sums.
    pub epilogue: LinearEpilogue,
    /// `[rows, _]`: as wide as the projections' columns and features reach.
    pub out: RowsMut<'b>,
    /// f32 `[rows, ⌈features / 64⌉]`: sums of squares of the new residual, for the norm after it; with
    /// [`LinearEpilogue::Add`] alone.
    pub out_stats: Option<ViewMut<'b>>,
}

/// x ⟵ round(w · round(x / √(mean(x²) + ε))), with the same bits as [`RmsNorm`](super::RmsNorm).
#[derive(Clone, Copy, Debug)]
pub struct LinearNorm<'b> {
    /// `[inputs]`.
    pub weight: View<'b>,
    /// ε.
    pub eps: f32,
    /// f32 `[rows, ⌈inputs / 64⌉]`: sums of squares of x, as the kernel that wrote x leaves them.
    pub stats: View<'b>,
}

/// Blocks of features, each of one projection or of gate and up, and segments of k; where these are several, tickets
/// for the blocks, and the segments' sums.
const BLOCKS: Geometry<WlLinear> = geometry! {
    WlLinear { rows, epilogue, projections, segments, projection }
    [WL_LINEAR_THREADS, WL_LINEAR_FEATURES, WL_LINEAR_SWIGLU, WL_LINEAR_TICKETS]
    let first = projection[0].features;
    let second = select(1 < projections, projection[1].features, 0);
    let third = select(2 < projections, projection[2].features, 0);
    let others = ceil_div(second, WL_LINEAR_FEATURES) + ceil_div(third, WL_LINEAR_FEATURES);
    let each = ceil_div(first, WL_LINEAR_FEATURES) + others;
    let pairs = ceil_div(first, WL_LINEAR_FEATURES / 2);
    let blocks = select(epilogue == WL_LINEAR_SWIGLU, pairs, each);
    let tickets = select(segments == 1, 0, WL_LINEAR_TICKETS);
    let sums = select(segments == 1, 0, blocks * segments * rows * WL_LINEAR_FEATURES);
    grid: [blocks, segments, 1],
    block: WL_LINEAR_THREADS,
    shared: 0,
    scratch: { scratch: 4 * (tickets + sums), 4 * tickets; },
};

/// How k is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    segments: usize,
    length: usize,
}

impl Cut {
    /// A function of the weights' shapes and type alone, for the order of every sum follows from it; `size` is that of
    /// a weight in bytes.
    ///
    /// A segment costs rows · 1 KiB of partial sums, written and read, for 128 B · size · k of weights. So segments are
    /// 2 KiB of a feature's weights and more, and as many as make 256 CTAs; matrices that are too small for 128 CTAs of
    /// those take segments of 1 KiB.
    fn of(blocks: usize, inputs: usize, size: usize) -> Cut {
        let (blocks, inputs) = (blocks.max(1), inputs.max(1));
        let most = WL_LINEAR_SEGMENTS as usize;
        let mut segments = (256 / blocks).min(inputs * size / 2048).clamp(1, most);
        if segments * blocks < 128 {
            segments = 128usize.div_ceil(blocks).min(inputs * size / 1024).clamp(segments, most);
        }
        let length = inputs.div_ceil(segments).next_multiple_of(WL_LINEAR_SEGMENT_STEP as usize);
        // Rounded up, fewer of them may do.
        Cut { segments: inputs.div_ceil(length).max(1), length }
    }
}

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let (when, most_rows) = match entry.rsplit('_').next() {
        Some(rows) if rows != "any" => (
            "with the smallest number of rows that holds rows; inputs elements, and those from row to row, are multiples \
             of 16 bytes",
            rows,
        ),
        _ => (
            "where inputs elements, or those from row to row of x or of weights, are no multiple of 16 bytes",
            "WL_LINEAR_ROWS",
        ),
    };
    let mut requires = vec![type_of(entry), weight_type_of(entry), format!("rows <= {most_rows}")];
    requires.extend(projection::requires());
    if most_rows != "WL_LINEAR_ROWS" {
        requires.push("select(weight_type == WL_E4M3, inputs / 16 * 16, inputs / 8 * 8) == inputs".into());
        requires.extend(projection::requires_whole_rows());
    }
    requires.extend(texts(&[
        "1 <= segments",
        "segments <= WL_LINEAR_SEGMENTS",
        "1 <= segment_length",
        "(segments - 1) * segment_length < inputs",
        "inputs <= segments * segment_length",
    ]));
    requires
        .push("segment_length / WL_LINEAR_SEGMENT_STEP * WL_LINEAR_SEGMENT_STEP == segment_length".into());
    requires.push(unless("segments == 1", "blocks <= WL_LINEAR_TICKETS"));
    About {
        when,
        requires,
        chosen: &[(
            &["segments", "segment_length"],
            "The caller's choice within what is required; it is the order of the sums, so that products of the same \
             weights give the same bits where it is the same. warploom begins with s = min(256 / blocks, inputs * size / \
             2048), within 1 to WL_LINEAR_SEGMENTS, size being an element's bytes; if s * blocks < 128, it takes \
             min(ceil_div(128, blocks), inputs * size / 1024) instead, within s to WL_LINEAR_SEGMENTS. segment_length is \
             ceil_div(inputs, s), rounded up to a multiple of WL_LINEAR_SEGMENT_STEP, and segments is ceil_div(inputs, \
             segment_length).",
        )],
        ahead: "the weights: a kernel that writes them must have been waited for, by the host or by a copy behind it \
                on the stream",
        ..About::new(
            "WlLinear",
            "product of 1 to 64 rows with up to three matrices, the norm before it and its epilogue",
            BLOCKS.text,
        )
    }
}

impl LinearArgs<'_> {
    /// What geometry depends on, with how the launch is cut, which is a function of it. Sizes beyond what launches take
    /// are the largest that they do.
    fn sizes(&self) -> WlLinear {
        let count = |count: usize, most: usize| count.min(most) as i32;
        let mut p = WlLinear {
            epilogue: self.epilogue.code(),
            rows: count(self.rows, WL_LINEAR_ROWS as usize),
            inputs: count(self.inputs, MOST),
            projections: self.projections.iter().flatten().count() as i32,
            ..WlLinear::default()
        };
        for (to, projection) in p.projection.iter_mut().zip(self.projections.iter().flatten()) {
            to.features = count(projection.features, MOST);
        }
        let blocks = BLOCKS.grid(&p)[0] as usize;
        let cut = Cut::of(blocks, self.inputs.min(MOST), self.size());
        WlLinear { segments: cut.segments as i32, segment_length: cut.length as i32, ..p }
    }

    /// Bytes of an element of x and of the weights.
    fn size(&self) -> usize {
        self.product().size()
    }

    fn product(&self) -> Product<'_, '_> {
        Product {
            dtype: self.dtype,
            rows: self.rows,
            inputs: self.inputs,
            has_scales: self.x_scales.is_some(),
            projections: &self.projections,
            epilogue: self.epilogue,
        }
    }

    /// Which of the functions.
    fn variant(&self) -> usize {
        let all_whole =
            (self.inputs * self.size()).is_multiple_of(16) && self.product().rows_are_whole(&self.x);
        match self.rows {
            _ if !all_whole => 3,
            0..=16 => 0,
            17..=32 => 1,
            _ => 2,
        }
    }
}

fn scratch_bytes(p: &WlLinear) -> usize {
    // With several segments there are few blocks.
    BLOCKS.scratch(p).map_or(usize::MAX, |[scratch, _]| scratch)
}

impl Linear {
    /// The most scratch that any launch needs, in bytes.
    pub const MOST_SCRATCH: usize = WL_LINEAR_MOST_SCRATCH as usize;

    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "linear")?;
        let load = |kind: &str| {
            Half::load(|dtype| {
                let load = |rows: &str| module.function(&format!("wl_linear_{dtype}{kind}_{rows}"));
                Ok([load("16")?, load("32")?, load("64")?, load("any")?])
            })
        };
        Ok(Linear { functions: [load("")?, load("_e4m3")?] })
    }

    /// Bytes of scratch that a launch with these arguments needs: none, or up to 8 MiB and 512 B.
    ///
    /// It grows with the rows. The scratch must be zero before its first launch; launches that follow each other,
    /// of whatever shapes, may then share it as they leave it. For sizes that a launch refuses the number means
    /// nothing.
    pub fn scratch_bytes(&self, args: &LinearArgs) -> usize {
        scratch_bytes(&args.sizes())
    }

    /// Bytes of scratch of a launch that nothing else would be refused of.
    #[cfg(feature = "capi")]
    pub(crate) fn check(&self, args: &LinearArgs) -> Result<usize> {
        Ok(scratch_bytes(&self.prepare(args)?.1))
    }

    /// The functions of the launch's types, and its parameter but for the scratch.
    fn prepare(&self, args: &LinearArgs) -> Result<(&[Function; 4], WlLinear)> {
        let LinearArgs { dtype, rows, inputs, epilogue, .. } = *args;
        let fp8 = args.x_scales.is_some();
        let functions = self.functions[usize::from(fp8)].of(dtype)?;
        let mut p = WlLinear {
            version: WL_VERSION,
            type_: dtype.code(),
            weight_type: if fp8 { WL_E4M3 } else { dtype.code() },
            rows: Check::of("rows").count(rows, 0..=WL_LINEAR_ROWS as usize)?,
            inputs: Check::of("inputs").count(inputs, 1..=MOST)?,
            prefetch: u32::from(args.prefetch),
            ..args.sizes()
        };
        (p.x, p.x_stride) = Check::of("x").rows(&args.x, rows, inputs, args.size())?;
        if let Some(scales) = args.x_scales {
            p.x_scales = Check::of("x_scales").view(scales, rows, 4)?;
        }
        if let Some(norm) = &args.norm {
            if fp8 {
                return Check::of("norm_weight")
                    .refuse("given with x_scales: x of e4m3 is not normed".to_string());
            }
            let eps = norm.eps;
            if !(eps >= 0.0 && eps.is_finite()) {
                return Check::of("norm_eps").refuse(format!("{eps}; supported are finite numbers from 0"));
            }
            p.eps = eps;
            p.norm = Check::of("norm_weight").view(norm.weight, inputs, dtype.size())?;
            p.stats = Check::of("norm_stats").view(norm.stats, rows * inputs.div_ceil(64), 4)?;
        }
        if let Some(positions) = args.positions {
            p.positions = Check::of("positions").view(positions, rows, 4)?;
        }
        let product = args.product();
        let width;
        (p.projections, width) = product.check(&mut p.projection)?;
        let out_size = if epilogue == LinearEpilogue::StoreF32 { 4 } else { dtype.size() };
        (p.out, p.out_stride) = Check::of("out").rows_mut(&args.out, rows, width, out_size)?;
        p.out_stats = product.check_stats(args.out_stats.as_ref(), width)?;
        Ok((functions, p))
    }

    /// Enqueues the kernel. Of `scratch` it uses the first [`Linear::scratch_bytes`].
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: LinearArgs, scratch: ViewMut) -> Result<()> {
        let (functions, mut p) = self.prepare(&args)?;
        let needed = scratch_bytes(&p);
        if needed > 0 {
            p.scratch = Check::of("scratch").bytes(&scratch, needed)?;
        }
        if args.rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all that the kernel touches: `rows` rows of x, its scales, out and
        // statistics, the projections' features, and the scratch.
        unsafe { stream.launch(&functions[args.variant()], &BLOCKS.launch(&p)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::params::WL_LINEAR_TICKETS, *};

    #[test]
    fn no_segment_is_empty() {
        for blocks in [1, 2, 3, 16, 24, 32, 48, 64, 85, 86, 127, 128, 129, 224, 1002] {
            for inputs in (1..20_000).step_by(61).chain([512, 1024, 2048, 4096, 14336, MOST]) {
                for size in [1, 2] {
                    let Cut { segments, length, .. } = Cut::of(blocks, inputs, size);
                    assert!(
                        (1..=WL_LINEAR_SEGMENTS as usize).contains(&segments),
                        "{blocks}, {inputs}: {segments}"
                    );
                    assert!(
                        (segments - 1) * length < inputs && inputs <= segments * length,
                        "{blocks}, {inputs}"
                    );
                    assert!(
                        segments == 1 || (blocks <= WL_LINEAR_TICKETS as usize && size * length >= 1024),
                        "{blocks}, {inputs}"
                    );
                }
            }
        }
    }

    /// Llama 3 8B: q, k, v; output; gate and up; down; head. Llama 3.2 1B: q, k, v. In e4m3, of 8B: gate and up; down.
    #[test]
    fn llama_shapes_fill_an_h100() {
        let cut = |blocks, inputs, size| {
            let cut = Cut::of(blocks, inputs, size);
            (cut.segments, cut.length)
        };
        assert_eq!(cut(48, 4096, 2), (4, 1024));
        assert_eq!(cut(32, 4096, 2), (4, 1024));
        assert_eq!(cut(224, 4096, 2), (1, 4096));
        assert_eq!(cut(32, 14336, 2), (8, 1792));
        assert_eq!(cut(1002, 4096, 2), (1, 4096));
        assert_eq!(cut(24, 2048, 2), (4, 512));
        assert_eq!(cut(224, 4096, 1), (1, 4096));
        assert_eq!(cut(32, 14336, 1), (7, 2048));
    }
}
