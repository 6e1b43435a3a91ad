//! What is done to each row by itself.

use super::{Survey, bytes, statistics_bytes};
use crate::{
    driver::Buffer,
    error::Result,
    kernels::{
        Dtype, E4m3Rows, EmbedArgs, RmsNormArgs, Rows, RowsMut, SwigluArgs,
        params::{WL_RMS_NORM_HELD, WL_RMS_NORM_HELD_WIDE},
    },
};

/// Of the decode rows, and of a prompt's.
pub(super) fn embed(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    let width = shapes.hidden;
    for rows in [shapes.rows, shapes.prompt].into_iter().filter(|rows| *rows > 0) {
        // Of the table nothing is touched but the rows of these tokens.
        let table = survey.matrix(rows, width)?;
        let (tokens, positions) = (survey.numbers(0..rows)?, survey.numbers(0..rows)?);
        let mut out = survey.matrix(rows, width)?;
        let mut stats = survey.filled(statistics_bytes(rows, width))?;
        let row = width * shapes.dtype.size();
        let compulsory = bytes(rows * (row + 8), rows * row + stats.bytes());
        let args = EmbedArgs {
            dtype: shapes.dtype,
            rows,
            width,
            vocabulary: rows,
            table: table.rows(),
            tokens: tokens.view(),
            positions: Some(positions.view()),
            out: out.rows_mut(),
            stats: Some(stats.view_mut()),
        };
        survey.launch(&format!("{rows} × {width}"), true, &[compulsory], |kernels, stream| {
            kernels.embed.launch(stream, &args)
        })?;
    }
    Ok(())
}

/// Decode rows have their norms within products: the kernel's own launches are a prompt's. The others are of rows that one variant or
/// the other holds in registers, and of f32; and those that e4m3 is made of, before products that take it: a layer's, and of both variants.
pub(super) fn rms_norm(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    let (held, wide) = (WL_RMS_NORM_HELD as usize, WL_RMS_NORM_HELD_WIDE as usize);
    let mut norms = vec![];
    if shapes.prompt > 0 {
        norms.push((shapes.dtype, shapes.prompt, shapes.hidden, true));
    }
    norms.push((shapes.dtype, shapes.rows, held, false));
    norms.push((shapes.dtype, shapes.rows, wide, false));
    norms.push((Dtype::F32, shapes.rows, shapes.hidden, false));
    for (dtype, rows, width, of_model) in norms {
        let size = dtype.size();
        let (x, weight) = (survey.filled(rows * width * size)?, survey.filled(width * size)?);
        let mut y = survey.filled(rows * width * size)?;
        let compulsory = bytes((rows + 1) * width * size, rows * width * size);
        let args = RmsNormArgs {
            dtype,
            rows,
            width,
            eps: 1e-5,
            x: Rows { view: x.view(), stride: width },
            residual: None,
            weight: weight.view(),
            y: RowsMut { view: y.view_mut(), stride: width },
            stats: None,
            positions: None,
        };
        survey.launch(&format!("{rows} × {width}"), of_model, &[compulsory], |kernels, stream| {
            kernels.rms_norm.launch(stream, &args)
        })?;
    }
    let mut norms = vec![(shapes.rows, shapes.hidden, shapes.fp8)];
    if shapes.prompt > 0 {
        norms.push((shapes.prompt, shapes.hidden, shapes.fp8));
    }
    norms.extend([(shapes.rows, held, false), (shapes.rows, wide, false)]);
    for (rows, width, of_model) in norms {
        let (dtype, size) = (shapes.dtype, shapes.dtype.size());
        let (x, weight) = (survey.matrix(rows, width)?, survey.filled(width * size)?);
        let (mut q, mut scales) = (survey.filled(rows * width)?, survey.filled(4 * rows)?);
        let compulsory = bytes((rows + 1) * width * size, rows * (width + 4));
        let args = RmsNormArgs {
            dtype,
            rows,
            width,
            eps: 1e-5,
            x: x.rows(),
            residual: None,
            weight: weight.view(),
            y: e4m3(&mut q, &mut scales, width),
            stats: None,
            positions: None,
        };
        survey.launch(&format!("{rows} × {width}, e4m3"), of_model, &[compulsory], |kernels, stream| {
            kernels.rms_norm.launch_e4m3(stream, &args)
        })?;
    }
    Ok(())
}

/// Activations, which saturate at 1200.
fn e4m3<'b>(q: &'b mut Buffer, scales: &'b mut Buffer, width: usize) -> E4m3Rows<'b> {
    let q = RowsMut { view: q.view_mut(), stride: width };
    E4m3Rows { q, scales: scales.view_mut(), bound: Some(1200.0) }
}

/// Products have it as their epilogue: no forward pass launches it.
pub(super) fn swiglu(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    let (rows, width) = (shapes.rows.max(shapes.prompt), shapes.intermediate);
    let (gate, up) = (survey.matrix(rows, width)?, survey.matrix(rows, width)?);
    let mut out = survey.matrix(rows, width)?;
    let all = rows * width * shapes.dtype.size();
    let args = SwigluArgs {
        dtype: shapes.dtype,
        rows,
        width,
        gate: gate.rows(),
        up: up.rows(),
        out: out.rows_mut(),
        positions: None,
    };
    survey.launch(&format!("{rows} × {width}"), false, &[bytes(2 * all, all)], |kernels, stream| {
        kernels.swiglu.launch(stream, &args)
    })?;
    let (mut q, mut scales) = (survey.filled(rows * width)?, survey.filled(4 * rows)?);
    let args = SwigluArgs {
        dtype: shapes.dtype,
        rows,
        width,
        gate: gate.rows(),
        up: up.rows(),
        out: e4m3(&mut q, &mut scales, width),
        positions: None,
    };
    let compulsory = bytes(2 * all, rows * (width + 4));
    survey.launch(&format!("{rows} × {width}, e4m3"), false, &[compulsory], |kernels, stream| {
        kernels.swiglu.launch_e4m3(stream, &args)
    })
}
