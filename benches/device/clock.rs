//! How criterion measures here: by a device's own events, or by the host's clock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{
    Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use warploom::{
    Result,
    driver::{Driver, Event, Stream},
};

/// A device and the stream that is measured.
pub struct Queue {
    pub driver: Arc<dyn Driver>,
    pub stream: Stream,
}

impl Queue {
    /// Seconds that the device takes for what `work` enqueues: from an event before it to one behind it.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (begun, ended) = (Event::new(&self.driver)?, Event::new(&self.driver)?);
        begun.record(&self.stream)?;
        work()?;
        ended.record(&self.stream)?;
        ended.synchronize()?;
        Ok(f64::from(ended.elapsed_ms(&begun)?) / 1e3)
    }
}

/// A measurement for criterion.
pub enum Clock {
    /// Events on a device's stream: what the host does beside it does not count.
    Events(Arc<Queue>),
    /// The host's clock, for what the host takes part in, and for CPUs.
    Wall,
}

/// Where a measurement began.
pub enum Begun {
    Event(Event),
    Instant(Instant),
}

impl Measurement for Clock {
    type Intermediate = Begun;
    type Value = Duration;

    fn start(&self) -> Begun {
        match self {
            Clock::Events(queue) => {
                let event = Event::new(&queue.driver).expect("an event");
                event.record(&queue.stream).expect("an event on the stream");
                Begun::Event(event)
            }
            Clock::Wall => Begun::Instant(Instant::now()),
        }
    }

    fn end(&self, begun: Begun) -> Duration {
        match (self, begun) {
            (Clock::Events(queue), Begun::Event(begun)) => {
                let ended = Event::new(&queue.driver).expect("an event");
                ended.record(&queue.stream).expect("an event on the stream");
                ended.synchronize().expect("the device gets there");
                let ms = ended.elapsed_ms(&begun).expect("both have come");
                Duration::from_secs_f64(f64::from(ms) / 1e3)
            }
            (_, Begun::Instant(begun)) => begun.elapsed(),
            (Clock::Wall, Begun::Event(_)) => unreachable!("`start` gave an instant"),
        }
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Formatter
    }
}

/// As criterion's own, with FLOP for elements.
struct Formatter;

impl ValueFormatter for Formatter {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        match throughput {
            Throughput::Elements(flop) => {
                // FLOP in a nanosecond, a thousandth of TFLOP in a second.
                values.iter_mut().for_each(|value| *value = *flop as f64 / *value / 1e3);
                "TFLOP/s"
            }
            other => WallTime.formatter().scale_throughputs(typical, other, values),
        }
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}
