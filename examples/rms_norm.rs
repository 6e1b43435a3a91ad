//! One kernel: RMSNorm of a row of 4096 bf16 features, on the simulator or on a GPU.
//!
//!     cargo run --release --no-default-features --features cuda --example rms_norm -- sim
//!     cargo run --release --no-default-features --features cuda --example rms_norm -- cuda:0
use half::bf16;
use warploom::{
    driver::{self, Buffer, Stream},
    kernels::{Dtype, RmsNorm, RmsNormArgs, Rows, RowsMut},
};

fn main() -> warploom::Result<()> {
    let driver = driver::open(&std::env::args().nth(1).unwrap_or("sim".into()))?;
    let stream = Stream::new(&driver)?;
    let kernel = RmsNorm::load(&driver)?;

    let width = 4096;
    let x: Vec<bf16> = (0..width).map(|i| bf16::from_f32((i % 17) as f32 - 8.0)).collect();
    let (there, weight) =
        (Buffer::from_slice(&stream, &x)?, Buffer::from_slice(&stream, &vec![bf16::ONE; width])?);
    let mut y = Buffer::new(&driver, 2 * width)?;
    let args = RmsNormArgs {
        dtype: Dtype::Bf16,
        rows: 1,
        width,
        eps: 1e-5,
        x: Rows { view: there.view(), stride: width },
        residual: None,
        weight: weight.view(),
        y: RowsMut { view: y.view_mut(), stride: width },
        stats: None,
        positions: None,
    };
    kernel.launch(&stream, &args)?;

    let mut result = vec![bf16::ZERO; width];
    stream.download(y.view(), &mut result)?;
    let rms = (x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / width as f64 + 1e-5).sqrt();
    let worst = x.iter().zip(&result).map(|(x, y)| (x.to_f64() / rms - y.to_f64()).abs()).fold(0.0, f64::max);
    println!("{}: off by {worst:.4} at most", driver.properties().name);
    assert!(worst < 0.01);
    Ok(())
}
