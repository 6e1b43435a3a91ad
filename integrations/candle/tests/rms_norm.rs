//! RMSNorm against candle's own.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{Random, assert_same, numbers, refusal, rounding};
use warploom_candle::rms_norm;

const TYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// Compares with what candle computes of the same numbers in f64.
///
/// Two roundings to the type are within 2u + u² of the exact result. Besides, a sum of up to 2^14 squares in f32, in chains of at most 48
/// additions, is within 48 · 2^-24, and half of that comes through the root; with its reciprocal and the products, 2^-18.
fn check(x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
    let y = rms_norm(x, weight, eps)?;
    assert_eq!((y.dims(), y.dtype()), (x.dims(), x.dtype()));
    let wanted = candle_nn::ops::rms_norm_slow(&x.to_dtype(DType::F64)?, &weight.to_dtype(DType::F64)?, eps)?;
    let u = rounding(x.dtype());
    let tolerance = 2.0 * u + u * u + 2f64.powi(-18);
    // Below its smallest normal number a type rounds absolutely.
    let tiny = if x.dtype() == DType::F16 { 2f64.powi(-24) } else { 0.0 };
    for (i, (y, wanted)) in numbers(&y)?.iter().zip(numbers(&wanted)?).enumerate() {
        let off = (y - wanted).abs();
        assert!(
            off <= tolerance * wanted.abs() + tiny,
            "{:?} {:?}, {i}: {y}, not {wanted}",
            x.dtype(),
            x.shape()
        );
    }
    Ok(())
}

#[test]
fn agrees_with_candle() -> Result<()> {
    let mut random = Random::new(1);
    for dtype in TYPES {
        for shape in
            [&[1, 1][..], &[64], &[3, 7], &[2, 3, 100], &[1, 2, 2, 1024], &[2, 4096], &[1, 5000], &[2, 16384]]
        {
            let x = random.tensor(shape, dtype)?;
            let weight = random.tensor(&shape[shape.len() - 1..], dtype)?;
            check(&x, &weight, 1e-5)?;
            check(&(x * 100.0)?, &weight, 0.0)?;
        }
    }
    Ok(())
}

#[test]
fn strides_and_offsets_change_no_bit() -> Result<()> {
    let mut random = Random::new(2);
    for dtype in TYPES {
        let wide = random.tensor(&[3, 4, 160], dtype)?;
        let weights = random.tensor(&[2, 64], dtype)?;
        let (x, weight) = (wide.narrow(2, 32, 64)?, weights.get(1)?);
        assert!(!x.is_contiguous());
        let wanted = rms_norm(&x.contiguous()?, &weight, 1e-6)?;
        assert_same(&rms_norm(&x, &weight, 1e-6)?, &wanted, "narrowed columns")?;
        check(&x, &weight, 1e-6)?;
        let rows = x.contiguous()?.narrow(0, 1, 2)?;
        assert_same(&rms_norm(&rows, &weight, 1e-6)?, &wanted.narrow(0, 1, 2)?, "narrowed rows")?;
        // Rows of one element of each batch.
        let column = x.narrow(1, 2, 1)?;
        assert_same(&rms_norm(&column, &weight, 1e-6)?, &wanted.narrow(1, 2, 1)?, "every fourth row")?;
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let mut random = Random::new(3);
    let x = random.tensor(&[2, 3, 64], DType::BF16)?;
    let weight = random.tensor(&[64], DType::BF16)?;
    let f32 = |x: &Tensor| x.to_dtype(DType::F32);
    let transposed = x.transpose(0, 1)?;
    let cases = [
        (rms_norm(&x.to_dtype(DType::F64)?, &weight, 1e-5), "x is f64; supported are bf16 and f16 and f32"),
        (rms_norm(&x.to_dtype(DType::U32)?, &weight, 1e-5), "x is u32"),
        (rms_norm(&f32(&x)?, &weight, 1e-5), "weight is bf16 and x f32; make them one type with to_dtype"),
        (rms_norm(&x, &weight.narrow(0, 0, 63)?, 1e-5), "weight has 63 features and x 64"),
        (rms_norm(&x, &weight.reshape((1, 64))?, 1e-5), "weight has the shape [1, 64]; expected is (width)"),
        (rms_norm(&x.narrow(0, 0, 0)?, &weight, 1e-5), "x is empty: it has the shape [0, 3, 64]"),
        (rms_norm(&x.narrow(2, 0, 0)?, &weight.narrow(0, 0, 0)?, 1e-5), "is empty"),
        (rms_norm(&x.flatten_all()?.get(0)?, &weight, 1e-5), "x is empty: it has the shape []"),
        (
            rms_norm(&transposed, &weight, 1e-5),
            "strides [64, 192, 1]; rows have to be equally far apart: call .contiguous()",
        ),
        (rms_norm(&x.transpose(1, 2)?, &weight.narrow(0, 0, 3)?, 1e-5), "side by side: call .contiguous()"),
        (rms_norm(&x.get(0)?.get(0)?.broadcast_as((5, 64))?, &weight, 1e-5), "rows must not overlap"),
        (
            rms_norm(&x.narrow(2, 4, 32)?, &weight.narrow(0, 0, 32)?, 1e-5),
            "x begins at element 4 of its storage; supported are multiples of 8",
        ),
        (rms_norm(&x.narrow(2, 8, 32)?, &weight.narrow(0, 1, 32)?, 1e-5), "weight begins at element 1"),
        (rms_norm(&x, &weight, -1.0), "eps: -1; supported are finite numbers from 0"),
        (rms_norm(&x, &weight, f32::NAN), "eps: NaN"),
    ];
    for (result, wanted) in cases {
        let said = refusal(result);
        assert!(said.starts_with("rms_norm: ") && said.contains(wanted), "{said}, not {wanted}");
    }
    // As they are told.
    rms_norm(&transposed.contiguous()?, &weight, 1e-5)?;
    rms_norm(&x.narrow(2, 4, 32)?.force_contiguous()?, &weight.narrow(0, 0, 32)?, 1e-5)?;
    Ok(())
}

#[test]
fn there_is_no_gradient_and_it_is_said() -> Result<()> {
    let x = Var::ones((2, 64), DType::F32, &Device::Cpu)?;
    let weight = Tensor::ones(64, DType::F32, &Device::Cpu)?;
    let loss = rms_norm(x.as_tensor(), &weight, 1e-5)?.sum_all()?;
    let said = loss.backward().err().map(|e| e.to_string());
    assert_eq!(said.as_deref(), Some("backward is not supported for rms_norm"));
    Ok(())
}
