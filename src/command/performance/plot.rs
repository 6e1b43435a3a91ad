//! The roofline of a GPU: what every kernel reached, under what was measured as the most.

use plotters::prelude::*;
use warploom::{
    Error, Result,
    results::{Row, Run},
};

/// A launch's FLOP per byte, and its FLOP per second.
pub type Point = (f64, f64);

/// The points of each kernel that has bytes and FLOP.
pub fn points(run: &Run) -> Vec<(&str, Vec<Point>)> {
    let point = |row: &Row| Some((row.flop? as f64 / row.bytes? as f64, row.flop_per_s()?));
    let mut kinds: Vec<(&str, Vec<Point>)> = vec![];
    for row in &run.kernels {
        let Some(point) = point(row) else { continue };
        match kinds.iter_mut().find(|(name, _)| *name == row.name) {
            Some((_, points)) => points.push(point),
            None => kinds.push((&row.name, vec![point])),
        }
    }
    kinds
}

/// The plot as SVG; None where there are no points.
///
/// # Errors
/// [`Error::Text`] if drawing fails.
pub fn roofline(run: &Run) -> Result<Option<String>> {
    let kinds = points(run);
    if kinds.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, run, &kinds)
        .map_err(|error| Error::Text { what: "the roofline".into(), reason: error.to_string() })?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    run: &Run,
    kinds: &[(&str, Vec<Point>)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let ceiling = |name: &str| run.ceilings.iter().find(|row| row.name == name);
    let bandwidth = ceiling("read").and_then(Row::bytes_per_s);
    let arithmetic = run.ceilings.iter().find_map(Row::flop_per_s);
    let points = || kinds.iter().flat_map(|(_, points)| points.iter().copied());
    let (low, high) = points().fold((f64::INFINITY, 0.0f64), |(low, high), (x, _)| (low.min(x), high.max(x)));
    let (low, high) = (low / 2.0, high * 2.0);
    let roof = |x: f64| {
        let sloped = bandwidth.map_or(f64::INFINITY, |rate| rate * x);
        sloped.min(arithmetic.unwrap_or(f64::INFINITY))
    };
    let values = || points().map(|(_, y)| y).chain([low, high].map(roof)).filter(|y| y.is_finite());
    let (bottom, top) = values().fold((f64::INFINITY, 0.0f64), |(low, high), y| (low.min(y), high.max(y)));
    let root = SVGBackend::with_string(svg, (960, 600)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{}, {}", run.device.name, run.date), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(72)
        .build_cartesian_2d((low..high).log_scale(), (bottom / 2.0 / 1e12..top * 2.0 / 1e12).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("FLOP per byte that must be moved")
        .y_desc("TFLOP/s")
        .light_line_style(WHITE)
        .draw()?;
    // Straight lines, on logarithmic scales: up to the ridge, and on from there.
    let ridge = bandwidth.zip(arithmetic).map(|(bandwidth, arithmetic)| arithmetic / bandwidth);
    let xs = [Some(low), ridge.filter(|x| (low..high).contains(x)), Some(high)];
    let line = xs.into_iter().flatten().map(|x| (x, roof(x) / 1e12)).filter(|(_, y)| y.is_finite());
    let roof_name =
        if arithmetic.is_some() { "measured ceilings: read, matmul bf16" } else { "measured ceiling: read" };
    chart
        .draw_series(LineSeries::new(line, BLACK.stroke_width(2)))?
        .label(roof_name)
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK.stroke_width(2)));
    for (i, (name, points)) in kinds.iter().enumerate() {
        let colour = HSLColor(i as f64 / kinds.len() as f64, 0.8, 0.42);
        chart
            .draw_series(points.iter().map(|(x, y)| Circle::new((*x, y / 1e12), 3, colour.filled())))?
            .label(*name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 3, colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    drop(chart);
    Ok(())
}
