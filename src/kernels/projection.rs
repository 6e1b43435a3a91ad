//! What both products, [`Linear`](super::Linear) and [`Gemm`](super::Gemm), make of x: their matrices and their epilogues.

use super::{
    Check, Dtype, Rows,
    manifest::{apart, multiple, texts, unless, when},
    params::{
        WL_LINEAR_ADD, WL_LINEAR_MOST, WL_LINEAR_STORE, WL_LINEAR_STORE_F32, WL_LINEAR_SWIGLU, WlProjection,
    },
};
use crate::{
    driver::{View, ViewMut},
    error::Result,
};

/// Most features and inputs: bytes of a row and sums of a few features stay within an i32.
pub(super) const MOST: usize = WL_LINEAR_MOST as usize;

/// One matrix and where its outputs go.
#[derive(Clone, Copy, Debug)]
pub struct LinearProjection<'b> {
    /// `[features, inputs]`.
    pub weight: Rows<'b>,
    /// f32 `[features]`, of e4m3 weights, at a multiple of 16 bytes.
    pub scales: Option<View<'b>>,
    /// `[features]`.
    pub bias: Option<View<'b>>,
    /// Number of outputs.
    pub features: usize,
    /// Column of out at which they begin.
    pub column: usize,
}

/// What happens to the finished sums y, in f32.
///
/// None writes e4m3: a row's scale follows from the largest of all its numbers, of which a CTA has a few. What a product
/// in e4m3 is to read comes of [`QuantizeFp8Rows`](super::QuantizeFp8Rows), or of the norm before it
/// ([`RmsNorm::launch_e4m3`](super::RmsNorm::launch_e4m3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearEpilogue {
    /// out = round(y).
    Store,
    /// out = y, in f32.
    StoreF32,
    /// out = round(out + y), of one projection at column 0.
    Add,
    /// out = round(silu(gate) · up), of two projections with equal features and column.
    SwiGlu,
}

impl LinearEpilogue {
    pub(super) fn code(self) -> u32 {
        match self {
            LinearEpilogue::Store => WL_LINEAR_STORE,
            LinearEpilogue::StoreF32 => WL_LINEAR_STORE_F32,
            LinearEpilogue::Add => WL_LINEAR_ADD,
            LinearEpilogue::SwiGlu => WL_LINEAR_SWIGLU,
        }
    }
}

macro_rules! names {
    ($($constant:ident $field:literal),*) => {
        $(pub(crate) const $constant: [&str; 3] = [
            concat!("projections[0].", $field),
            concat!("projections[1].", $field),
            concat!("projections[2].", $field),
        ];)*
    };
}
// As errors name them.
names!(WEIGHT "weight", BIAS "bias", SCALES "scales", FEATURES "features", COLUMN "column");

/// What a product's matrices are checked against.
pub(super) struct Product<'p, 'b> {
    pub dtype: Dtype,
    pub rows: usize,
    pub inputs: usize,
    pub has_scales: bool,
    pub projections: &'p [Option<LinearProjection<'b>>; 3],
    pub epilogue: LinearEpilogue,
}

impl Product<'_, '_> {
    /// Bytes of an element of x and of the weights.
    pub fn size(&self) -> usize {
        if self.has_scales { 1 } else { self.dtype.size() }
    }

    /// Fills in the projections: their number, and the width of out.
    pub fn check(&self, to: &mut [WlProjection; 3]) -> Result<(i32, usize)> {
        let check = Check::of("projections");
        let epilogue = self.epilogue;
        let mut width = 0;
        let given = || self.projections.iter().flatten();
        let wanted = match epilogue {
            LinearEpilogue::Store | LinearEpilogue::StoreF32 => 1..=3,
            LinearEpilogue::Add => 1..=1,
            LinearEpilogue::SwiGlu => 2..=2,
        };
        let number = match given().count() {
            number if wanted.contains(&number) => number as i32,
            number => {
                let supported = match (*wanted.start(), *wanted.end()) {
                    (1, 3) => "are 1 to 3",
                    (1, _) => "is 1",
                    _ => "are 2, gate and up",
                };
                return check
                    .refuse(format!("{number} with the epilogue {epilogue:?}; supported {supported}"));
            }
        };
        for (i, projection) in given().enumerate() {
            let LinearProjection { features, column, .. } = *projection;
            let (weight, stride) =
                Check::of(WEIGHT[i]).rows(&projection.weight, features, self.inputs, self.size())?;
            let bias = match projection.bias {
                Some(bias) => Check::of(BIAS[i]).view(bias, features, self.dtype.size())?,
                None => 0,
            };
            let check_scales = Check::of(SCALES[i]);
            let scales = match projection.scales {
                None if !self.has_scales => 0,
                // In vectors of 16 bytes.
                Some(scales) if self.has_scales => check_scales.vectors(scales, features)?,
                Some(_) => return check_scales.refuse("given without x_scales".to_string()),
                None => return check_scales.refuse("none; needed with x_scales".to_string()),
            };
            to[i] = WlProjection {
                weight,
                bias,
                scales,
                stride,
                features: Check::of(FEATURES[i]).count(features, 1..=MOST)?,
                column: Check::of(COLUMN[i]).count(column, 0..=MOST)?,
            };
            width = width.max(column + features);
            for other in given().take(i) {
                let apart = column >= other.column + other.features || other.column >= column + features;
                let same = column == other.column && features == other.features;
                match epilogue {
                    LinearEpilogue::SwiGlu if !same => {
                        return check.refuse(format!(
                            "gate and up have {} and {features} features at columns {} and {column}; \
                             supported are equal ones",
                            other.features, other.column,
                        ));
                    }
                    LinearEpilogue::Store | LinearEpilogue::StoreF32 if !apart => {
                        return check.refuse(format!(
                            "{} features at column {} overlap {features} at column {column}",
                            other.features, other.column,
                        ));
                    }
                    _ => {}
                }
            }
            if epilogue == LinearEpilogue::Add && column != 0 {
                return Check::of(COLUMN[i])
                    .refuse(format!("{column}; supported is 0 where out is added to"));
            }
        }
        Ok((number, width))
    }

    /// The address of statistics of an out of this width, or 0.
    pub fn check_stats(&self, stats: Option<&ViewMut>, width: usize) -> Result<u64> {
        let check = Check::of("out_stats");
        match stats {
            None => Ok(0),
            Some(stats) if self.epilogue == LinearEpilogue::Add => {
                check.view_mut(stats, self.rows.saturating_mul(width.div_ceil(64)), 4)
            }
            Some(_) => check.refuse(
                "of an epilogue that does not add to out; supported are those of one that does".into(),
            ),
        }
    }

    /// Whether all rows of x and weights begin at multiples of 16 bytes.
    pub fn rows_are_whole(&self, x: &Rows) -> bool {
        let whole = |rows: &Rows, count: usize| count <= 1 || (rows.stride * self.size()).is_multiple_of(16);
        whole(x, self.rows) && self.projections.iter().flatten().all(|p| whole(&p.weight, p.features))
    }
}

/// For the manifest: what a struct with these projections must be for the checks above.
pub(super) fn requires() -> Vec<String> {
    let mut requires = texts(&[
        "1 <= rows",
        "1 <= inputs",
        "inputs <= WL_LINEAR_MOST",
        "epilogue <= WL_LINEAR_SWIGLU",
        "1 <= projections",
        "projections <= WL_LINEAR_PROJECTIONS",
    ]);
    requires.extend(apart("rows", "inputs", &["x_stride"]));
    for holds in ["projections == 1", "projection[0].column == 0"] {
        requires.push(when("epilogue == WL_LINEAR_ADD", holds));
    }
    for holds in [
        "projections == 2",
        "projection[0].features == projection[1].features",
        "projection[0].column == projection[1].column",
    ] {
        requires.push(when("epilogue == WL_LINEAR_SWIGLU", holds));
    }
    for i in 0..3 {
        let this = format!("projection[{i}]");
        let (features, column, stride) =
            (format!("{this}.features"), format!("{this}.column"), format!("{this}.stride"));
        let reach = format!("{column} + {features}");
        let is_there = format!("{i} < projections");
        let mut holds = vec![
            format!("1 <= {features}"),
            format!("{features} <= WL_LINEAR_MOST"),
            format!("0 <= {column}"),
            format!("{column} <= WL_LINEAR_MOST"),
        ];
        holds.extend(apart("rows", &reach, &["out_stride"]));
        holds.extend(apart(&features, "inputs", &[&stride]));
        for j in 0..i {
            let (other, from) = (format!("projection[{j}]"), format!("projection[{j}].column"));
            let apart = format!("({reach} <= {from}) + ({from} + {other}.features <= {column})");
            holds.push(when("epilogue <= WL_LINEAR_STORE_F32", &apart));
        }
        requires.extend(holds.iter().map(|holds| when(&is_there, holds)));
    }
    requires
}

/// Of entries that read whole vectors: that rows of x and weights begin at multiples of 16 bytes where the first does.
pub(super) fn requires_whole_rows() -> Vec<String> {
    let whole = |rows: &str, stride: &str| {
        let elements =
            format!("select(weight_type == WL_E4M3, {}, {})", multiple(16, stride), multiple(8, stride));
        unless(&format!("{rows} == 1"), &elements)
    };
    let mut requires = vec![whole("rows", "x_stride")];
    for i in 0..3 {
        let holds = whole(&format!("projection[{i}].features"), &format!("projection[{i}].stride"));
        requires.push(when(&format!("{i} < projections"), &holds));
    }
    requires
}
