//! Inputs and comparisons.

use candle_core::{DType, Device, Result, Tensor};

/// Numbers that look random, the same in every run (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    #[allow(dead_code)]
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// From −1 to 1.
    pub fn tensor(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let numbers =
            (0..shape.iter().product()).map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0);
        Tensor::from_vec(numbers.collect(), shape, &Device::Cpu)?.to_dtype(dtype)
    }
}

/// Most of a relative error that rounding to a type makes.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

/// All elements, as numbers that have all their bits.
pub fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Whether two tensors have the same elements, bit for bit (but for the sign of NaN).
pub fn assert_same(got: &Tensor, wanted: &Tensor, what: &str) -> Result<()> {
    assert_eq!((got.dims(), got.dtype()), (wanted.dims(), wanted.dtype()), "{what}");
    let bits =
        |x: &Tensor| Ok::<_, candle_core::Error>(numbers(x)?.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    assert!(bits(got)? == bits(wanted)?, "{what}: other bits");
    Ok(())
}

/// The words of an error that has to be one.
pub fn refusal(result: Result<Tensor>) -> String {
    match result {
        Ok(tensor) => panic!("not refused: {:?}", tensor.shape()),
        Err(e) => e.to_string(),
    }
}
