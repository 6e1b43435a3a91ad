//! The pictures of a run, drawn from its logs.

use std::ops::Range;

use plotters::prelude::*;

use crate::{Error, Result};

/// Points of a line; more would not be seen.
const POINTS: usize = 400;

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Held-out cross-entropy of every exit over the steps of a `log.csv`, as SVG; None before there are two.
///
/// # Errors
/// [`Error::Text`] if the drawing library fails.
pub fn losses(log: &str) -> Result<Option<String>> {
    let columns: Vec<&str> = log.lines().next().unwrap_or_default().split(',').collect();
    let first = columns.iter().position(|&name| name == "validation_1").unwrap_or(columns.len());
    let layers = columns.iter().filter(|name| name.starts_with("validation_")).count();
    let mut series: Vec<Series> = (1..=layers)
        .map(|exit| {
            let label = format!("exit {exit}");
            Series { label, hue: (exit - 1) as f64 / layers as f64, wide: exit == layers, points: Vec::new() }
        })
        .collect();
    for line in log.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let step = fields[0].parse().unwrap_or(0.0);
        for (exit, series) in series.iter_mut().enumerate() {
            if let Some(Ok(loss)) = fields.get(first + exit).map(|field| field.parse::<f64>()) {
                series.points.push((step, loss));
            }
        }
    }
    if series.iter().all(|series| series.points.len() < 2) {
        return Ok(None);
    }
    let panel = Panel { title: "held-out loss, nats a token", marks: &[], floor: Some(0.0), series };
    picture("loss.svg", (800, 480), 1, &[panel]).map(Some)
}

/// What the optimizer's monitor measured of each layer over the steps of a `monitor.csv`, as SVG; None before there
/// are two lines of each.
///
/// # Errors
/// [`Error::Text`] if the drawing library fails.
pub fn monitor(log: &str) -> Result<Option<String>> {
    let columns: Vec<&str> = log.lines().next().unwrap_or_default().split(',').collect();
    let place = |name: &str| columns.iter().position(|&column| column == name).unwrap_or(usize::MAX);
    let panels = [
        ("RMS of r (independent gradients: 0.23)", "rms_r", &[0.2294][..], false),
        ("bimodality of r (uniform: 5/9)", "bimodality", &[5.0 / 9.0], false),
        ("RMS of g/√v", "rms_g_over_root", &[1.0], false),
        ("correlation of g and the momentum", "corr_g_momentum", &[0.0], false),
        ("norm of the gradient, log10", "gradient_norm", &[], true),
        ("share with √v under ε", "share_root_under_epsilon", &[], false),
    ];
    // Lines come layer by layer, in the same order at every step.
    let mut labels: Vec<&str> = Vec::new();
    let rows: Vec<Vec<&str>> = log.lines().skip(1).map(|line| line.split(',').collect()).collect();
    for row in &rows {
        if row.len() < 2 || labels.contains(&row[1]) {
            break;
        }
        labels.push(row[1]);
    }
    let layers = labels.iter().filter(|label| label.parse::<usize>().is_ok()).count().max(1);
    let panels: Vec<Panel> = panels
        .into_iter()
        .map(|(title, column, marks, logarithmic)| {
            let place = place(column);
            let series = labels.iter().enumerate().map(|(i, &label)| {
                let points = rows.iter().skip(i).step_by(labels.len()).filter_map(|row| {
                    let value: f64 = row.get(place)?.parse().ok()?;
                    let value = if logarithmic { value.log10() } else { value };
                    value.is_finite().then_some((row[0].parse().unwrap_or(0.0), value))
                });
                let layer = label.parse::<usize>().map_or(f64::NAN, |layer| (layer - 1) as f64);
                Series {
                    label: label.parse::<usize>().map_or(label.to_owned(), |layer| format!("layer {layer}")),
                    hue: layer / layers as f64,
                    wide: false,
                    points: points.collect(),
                }
            });
            Panel { title, marks, floor: None, series: series.collect() }
        })
        .collect();
    if panels.iter().all(|panel| panel.series.iter().all(|series| series.points.len() < 2)) {
        return Ok(None);
    }
    picture("monitor.svg", (1000, 1050), 2, &panels).map(Some)
}

struct Series {
    label: String,
    /// From 0, the first layer, to 1; NaN for what is no layer, which is drawn in grey.
    hue: f64,
    wide: bool,
    points: Vec<(f64, f64)>,
}

struct Panel<'a> {
    title: &'a str,
    /// Values with a line across.
    marks: &'a [f64],
    /// No value lies under it.
    floor: Option<f64>,
    series: Vec<Series>,
}

impl Panel<'_> {
    fn range(&self) -> (Range<f64>, Range<f64>) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let last = points().fold(1.0, |last: f64, &(step, _)| last.max(step));
        let values = points().map(|&(_, value)| value).chain(self.marks.iter().copied());
        let (low, high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        if low > high {
            return (0.0..last, 0.0..1.0);
        }
        let room = (0.05 * (high - low)).max(1e-3);
        let low = self.floor.map_or(low - room, |floor| (low - room).max(floor));
        (0.0..last, low..high + room)
    }
}

fn picture(name: &str, size: (u32, u32), columns: usize, panels: &[Panel<'_>]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, size, columns, panels)
        .map_err(|error| Error::Text { what: name.into(), reason: error.to_string() })?;
    Ok(svg)
}

fn draw(svg: &mut String, size: (u32, u32), columns: usize, panels: &[Panel<'_>]) -> Drawn {
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((panels.len().div_ceil(columns), columns));
    for (i, (area, panel)) in areas.iter().zip(panels).enumerate() {
        let (steps, values) = panel.range();
        let last = steps.end;
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(52)
            .build_cartesian_2d(steps, values)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc(panel.title)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .light_line_style(WHITE)
            .draw()?;
        for &mark in panel.marks {
            chart
                .draw_series(LineSeries::new([(0.0, mark), (last, mark)], BLACK.mix(0.4).stroke_width(1)))?;
        }
        for series in &panel.series {
            let color = match series.hue.is_nan() {
                true => RGBColor(120, 120, 120).to_rgba(),
                false => HSLColor(0.7 * series.hue, 0.8, 0.42).to_rgba(),
            };
            let style = color.stroke_width(if series.wide { 3 } else { 1 });
            let step = series.points.len().div_ceil(POINTS).max(1);
            let points = series.points.iter().step_by(step).copied();
            chart
                .draw_series(LineSeries::new(points, style))?
                .label(series.label.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        // One legend says it for all panels, if there is room.
        if i == 0 && panel.series.len() <= 20 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
    }
    root.present()?;
    Ok(())
}
