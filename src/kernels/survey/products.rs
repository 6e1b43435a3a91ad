//! Products: of decode rows, which stream the weights, and of prompts; and the rows that are made e4m3 for them.

use super::{Bytes, Survey, bytes, statistics_bytes};
use crate::{
    driver::Buffer,
    error::Result,
    kernels::{
        GemmArgs, Linear, LinearArgs, LinearEpilogue, LinearNorm, LinearProjection, QuantizeFp8RowsArgs,
        Rows, RowsMut,
    },
};

/// A product of a layer.
#[derive(Clone, Copy)]
struct Product {
    name: &'static str,
    inputs: usize,
    /// Of each projection; 0 for none.
    features: [usize; 3],
    /// RMSNorm of x before it. A prompt's is a launch of its own.
    norm: bool,
    epilogue: LinearEpilogue,
    /// Elements between two rows of weights, so that they begin anywhere.
    gap: usize,
}

impl Product {
    fn plain(name: &'static str, inputs: usize, features: usize) -> Self {
        let epilogue = LinearEpilogue::Store;
        Product { name, inputs, features: [features, 0, 0], norm: false, epilogue, gap: 0 }
    }

    fn projections(&self) -> impl Iterator<Item = (usize, usize)> {
        // Gate and up give one column together.
        let step = if self.epilogue == LinearEpilogue::SwiGlu { 0 } else { 1 };
        let mut column = 0;
        self.features.into_iter().filter(|features| *features > 0).map(move |features| {
            let begin = column;
            column += step * features;
            (features, begin)
        })
    }

    fn width(&self) -> usize {
        self.projections().map(|(features, column)| column + features).max().unwrap_or(0)
    }

    fn out_size(&self, size: usize) -> usize {
        if self.epilogue == LinearEpilogue::StoreF32 { 4 } else { size }
    }

    fn what(&self, rows: usize, suffix: &str) -> String {
        let count = self.projections().count();
        let features = match self.epilogue {
            LinearEpilogue::SwiGlu => format!("{count} · {}", self.width()),
            _ => self.width().to_string(),
        };
        let gap = if self.gap > 0 { ", unaligned rows" } else { "" };
        format!("{}: {rows} × {} → {features}{suffix}{gap}", self.name, self.inputs)
    }

    /// Weights and x once, and out; the old residual, where the product is added to it. `size`: of x and weights.
    fn compulsory(&self, rows: usize, size: usize, out_size: usize) -> Bytes {
        let weights: usize = self.projections().map(|(features, _)| features * self.inputs * size).sum();
        let out = rows * self.width() * out_size;
        let old = if self.epilogue == LinearEpilogue::Add { out } else { 0 };
        bytes(weights + rows * self.inputs * size + old, out)
    }
}

/// Of the rows of each projection's weights, where they are e4m3.
fn scales(survey: &Survey, product: &Product) -> Result<Vec<Buffer>> {
    product.projections().map(|(features, _)| survey.filled(4 * features)).collect()
}

/// Which of a layer's products are in e4m3 where a model has that.
const FEED_FORWARD: std::ops::RangeFrom<usize> = 2..;

/// The four products of a layer.
fn layer(survey: &Survey) -> [Product; 4] {
    let shapes = survey.shapes;
    let (_, q, kv) = shapes.widths();
    let plain = Product::plain("", 0, 0);
    let add = LinearEpilogue::Add;
    [
        Product { name: "q, k, v", inputs: shapes.hidden, features: [q, kv, kv], norm: true, ..plain },
        Product { epilogue: add, ..Product::plain("output", q, shapes.hidden) },
        Product {
            name: "gate, up",
            inputs: shapes.hidden,
            features: [shapes.intermediate, shapes.intermediate, 0],
            norm: true,
            epilogue: LinearEpilogue::SwiGlu,
            ..plain
        },
        Product { epilogue: add, ..Product::plain("down", shapes.intermediate, shapes.hidden) },
    ]
}

/// A layer and the head, and the feed-forward products in e4m3; then one product for each number of rows that has a variant, and one
/// whose rows begin anywhere.
pub(super) fn linear(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    let head = Product {
        norm: true,
        epilogue: LinearEpilogue::StoreF32,
        ..Product::plain("head", shapes.hidden, shapes.vocab)
    };
    for product in layer(survey).into_iter().chain([head]) {
        stream_weights(survey, &product, shapes.rows, false, true)?;
    }
    for product in &layer(survey)[FEED_FORWARD] {
        stream_weights(survey, product, shapes.rows, true, shapes.fp8)?;
    }
    let other = Product::plain("a product", 1024, 1024);
    for fp8 in [false, true] {
        let kind = if fp8 { "e4m3".to_string() } else { shapes.dtype.to_string() };
        for rows in [16, 32, 64] {
            if !survey.launched(&format!("{kind}_{rows}")) {
                stream_weights(survey, &other, rows, fp8, false)?;
            }
        }
        stream_weights(survey, &Product { gap: 4, ..other }, shapes.rows, fp8, false)?;
    }
    Ok(())
}

fn stream_weights(
    survey: &mut Survey,
    product: &Product,
    rows: usize,
    fp8: bool,
    of_model: bool,
) -> Result<()> {
    let shapes = survey.shapes;
    let dtype = shapes.dtype;
    let size = if fp8 { 1 } else { dtype.size() };
    let &Product { inputs, epilogue, gap, .. } = product;
    let (width, out_size) = (product.width(), product.out_size(dtype.size()));
    let add = epilogue == LinearEpilogue::Add;
    let x = survey.filled(rows * inputs * size)?;
    let stride = inputs + gap;
    let weights: Vec<Buffer> = product
        .projections()
        .map(|(features, _)| survey.filled(features * stride * size))
        .collect::<Result<_>>()?;
    let x_scales = survey.filled(4 * rows)?;
    let scales = scales(survey, product)?;
    let norm_weight = survey.filled(inputs * size)?;
    let stats = survey.filled(statistics_bytes(rows, inputs))?;
    let mut out = survey.filled(rows * width * out_size)?;
    let mut out_stats = survey.filled(statistics_bytes(rows, width))?;
    let mut scratch = survey.zeros(Linear::MOST_SCRATCH)?;
    let mut projections = [None; 3];
    let operands = weights.iter().zip(&scales);
    for ((to, (weight, scales)), (features, column)) in
        projections.iter_mut().zip(operands).zip(product.projections())
    {
        *to = Some(LinearProjection {
            weight: Rows { view: weight.view(), stride },
            scales: fp8.then(|| scales.view()),
            bias: None,
            features,
            column,
        });
    }
    let mut compulsory = product.compulsory(rows, size, out_size);
    if fp8 {
        compulsory.read += (x_scales.bytes() + scales.iter().map(Buffer::bytes).sum::<usize>()) as u64;
    }
    let norm = product.norm && !fp8;
    if norm {
        compulsory.read += (norm_weight.bytes() + stats.bytes()) as u64;
    }
    if add {
        compulsory.written += out_stats.bytes() as u64;
    }
    let before = LinearNorm { weight: norm_weight.view(), eps: 1e-5, stats: stats.view() };
    let args = LinearArgs {
        dtype,
        rows,
        inputs,
        x: Rows { view: x.view(), stride: inputs },
        x_scales: fp8.then(|| x_scales.view()),
        positions: None,
        prefetch: true,
        norm: norm.then_some(before),
        projections,
        epilogue,
        out: RowsMut { view: out.view_mut(), stride: width },
        out_stats: add.then(|| out_stats.view_mut()),
    };
    survey.launch(
        &product.what(rows, if fp8 { ", e4m3" } else { "" }),
        of_model,
        &[compulsory],
        |kernels, stream| kernels.linear.launch(stream, args, scratch.view_mut()),
    )
}

/// A prompt's layer; its feed-forward products in e4m3; then a product for each size of tile, and one whose rows begin anywhere.
pub(super) fn gemm(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    if shapes.prompt > 0 {
        for product in layer(survey) {
            multiply(survey, &product, shapes.prompt, false, true)?;
        }
        // Of few rows where they are no model's, for the sake of the time that they take here.
        let rows = if shapes.fp8 { shapes.prompt } else { shapes.prompt.min(64) };
        for product in &layer(survey)[FEED_FORWARD] {
            multiply(survey, product, rows, true, shapes.fp8)?;
        }
    }
    // 96 large tiles, and 16.
    let (large, small) = (Product::plain("a product", 256, 1536), Product::plain("a product", 256, 512));
    for fp8 in [false, true] {
        let kind = if fp8 { "e4m3".to_string() } else { shapes.dtype.to_string() };
        for (product, rows, variant) in
            [(large, 1024, "128"), (small, 512, "64"), (Product { gap: 4, ..small }, 512, "any")]
        {
            if !survey.launched(&format!("{kind}_{variant}")) {
                multiply(survey, &product, rows, fp8, false)?;
            }
        }
    }
    Ok(())
}

fn multiply(survey: &mut Survey, product: &Product, rows: usize, fp8: bool, of_model: bool) -> Result<()> {
    let shapes = survey.shapes;
    let dtype = shapes.dtype;
    let size = if fp8 { 1 } else { dtype.size() };
    let &Product { inputs, epilogue, gap, .. } = product;
    let width = product.width();
    let x = survey.filled(rows * inputs * size)?;
    let stride = inputs + gap;
    let weights: Vec<Buffer> = product
        .projections()
        .map(|(features, _)| survey.filled(features * stride * size))
        .collect::<Result<_>>()?;
    let x_scales = survey.filled(4 * rows)?;
    let scales = scales(survey, product)?;
    let mut out = survey.filled(rows * width * dtype.size())?;
    let mut projections = [None; 3];
    let mut compulsory = product.compulsory(rows, size, dtype.size());
    if fp8 {
        compulsory.read += (x_scales.bytes() + scales.iter().map(Buffer::bytes).sum::<usize>()) as u64;
    }
    let operands = weights.iter().zip(&scales);
    for ((to, (weight, scales)), (features, column)) in
        projections.iter_mut().zip(operands).zip(product.projections())
    {
        *to = Some(LinearProjection {
            weight: Rows { view: weight.view(), stride },
            scales: fp8.then(|| scales.view()),
            bias: None,
            features,
            column,
        });
    }
    let args = GemmArgs {
        dtype,
        rows,
        inputs,
        x: Rows { view: x.view(), stride: inputs },
        x_scales: fp8.then(|| x_scales.view()),
        projections,
        epilogue,
        out: RowsMut { view: out.view_mut(), stride: width },
        out_stats: None,
    };
    let what = product.what(rows, if fp8 { ", e4m3" } else { "" });
    survey.launch(&what, of_model, &[compulsory], |kernels, stream| kernels.gemm.launch(stream, args))
}

/// What the product down reads where its weights are e4m3.
pub(super) fn quantize_fp8_rows(survey: &mut Survey) -> Result<()> {
    let shapes = survey.shapes;
    let width = shapes.intermediate;
    for rows in [shapes.rows, shapes.prompt].into_iter().filter(|rows| *rows > 0) {
        let x = survey.matrix(rows, width)?;
        let (mut q, mut scales) = (survey.filled(rows * width)?, survey.filled(4 * rows)?);
        let compulsory = bytes(rows * width * shapes.dtype.size(), rows * (width + 4));
        let args = QuantizeFp8RowsArgs {
            dtype: shapes.dtype,
            rows,
            width,
            bound: Some(1200.0),
            x: x.rows(),
            q: RowsMut { view: q.view_mut(), stride: width },
            scales: scales.view_mut(),
            positions: None,
        };
        survey.launch(&format!("{rows} × {width}"), shapes.fp8, &[compulsory], |kernels, stream| {
            kernels.quantize_fp8_rows.launch(stream, args)
        })?;
    }
    Ok(())
}
