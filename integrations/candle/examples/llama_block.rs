//! A block of a Llama model on candle, with warploom's RMSNorm and attention: a prompt, and then a token over the cache.
//!
//!     cargo run --release --example llama_block                       # on the simulator
//!     cargo run --release --features cuda --example llama_block -- 0   # on GPU 0
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;
use warploom_candle::{Attention, attention, rms_norm};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const HIDDEN: usize = HEADS * HEAD_DIM;
const FEED_FORWARD: usize = 512;
const CONTEXT: usize = 128;
const EPS: f32 = 1e-5;

/// Weights are `[inputs, features]`.
struct Block {
    input_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    post_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    cos: Tensor,
    sin: Tensor,
}

/// Keys and values so far, `(batch, keys, kv_heads, head_dim)`.
type Cache = Option<(Tensor, Tensor)>;

impl Block {
    fn random(dtype: DType, device: &Device) -> Result<Self> {
        let weight = |inputs: usize, features: usize| {
            let std = 1.0 / (inputs as f32).sqrt();
            Tensor::randn(0f32, std, (inputs, features), device)?.to_dtype(dtype)
        };
        let norm = || Tensor::ones(HIDDEN, dtype, device);
        let angle = |i: usize| {
            (i / (HEAD_DIM / 2)) as f32 / 10000f32.powf((i % (HEAD_DIM / 2)) as f32 * 2.0 / HEAD_DIM as f32)
        };
        let angles: Vec<f32> = (0..CONTEXT * HEAD_DIM / 2).map(angle).collect();
        let angles = Tensor::from_vec(angles, (CONTEXT, HEAD_DIM / 2), device)?;
        Ok(Block {
            input_norm: norm()?,
            query: weight(HIDDEN, HIDDEN)?,
            key: weight(HIDDEN, KV_HEADS * HEAD_DIM)?,
            value: weight(HIDDEN, KV_HEADS * HEAD_DIM)?,
            output: weight(HIDDEN, HIDDEN)?,
            post_norm: norm()?,
            gate: weight(HIDDEN, FEED_FORWARD)?,
            up: weight(HIDDEN, FEED_FORWARD)?,
            down: weight(FEED_FORWARD, HIDDEN)?,
            cos: angles.cos()?.to_dtype(dtype)?,
            sin: angles.sin()?.to_dtype(dtype)?,
        })
    }

    /// `x` is `(batch, rows, hidden)`, the rows behind those that the cache has.
    fn forward(&self, x: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let (batch, rows, _) = x.dims3()?;
        let h = rms_norm(x, &self.input_norm, EPS)?;
        let project =
            |weight: &Tensor, heads| h.broadcast_matmul(weight)?.reshape((batch, rows, heads, HEAD_DIM));
        let before = cache.as_ref().map_or(Ok(0), |(k, _)| k.dim(1))?;
        let (cos, sin) = (self.cos.narrow(0, before, rows)?, self.sin.narrow(0, before, rows)?);
        let q = rope_thd(&project(&self.query, HEADS)?, &cos, &sin)?;
        let mut k = rope_thd(&project(&self.key, KV_HEADS)?, &cos, &sin)?;
        let mut v = project(&self.value, KV_HEADS)?;
        if let Some((earlier_k, earlier_v)) = cache.take() {
            (k, v) = (Tensor::cat(&[&earlier_k, &k], 1)?, Tensor::cat(&[&earlier_v, &v], 1)?);
        }
        let out = attention(&q, &k, &v, &Attention::causal(HEAD_DIM))?;
        *cache = Some((k, v));
        let x = (x + out.reshape((batch, rows, HIDDEN))?.broadcast_matmul(&self.output)?)?;
        let h = rms_norm(&x, &self.post_norm, EPS)?;
        let gate = h.broadcast_matmul(&self.gate)?.silu()?;
        x + (gate * h.broadcast_matmul(&self.up)?)?.broadcast_matmul(&self.down)?
    }
}

fn main() -> Result<()> {
    let device = match std::env::args().nth(1) {
        Some(ordinal) => Device::new_cuda(ordinal.parse().map_err(candle_core::Error::wrap)?)?,
        None => Device::Cpu,
    };
    let block = Block::random(DType::BF16, &device)?;
    let x = Tensor::randn(0f32, 1.0, (1, 71, HIDDEN), &device)?.to_dtype(DType::BF16)?;
    let whole = block.forward(&x, &mut None)?;

    // The same in two steps: attention of the last row goes through the kernel for decoding.
    let mut cache = None;
    block.forward(&x.narrow(1, 0, 70)?, &mut cache)?;
    let last = block.forward(&x.narrow(1, 70, 1)?, &mut cache)?;
    let apart =
        (whole.narrow(1, 70, 1)? - last)?.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("71 rows at once, and the last of them over a cache: {apart} apart at most");
    assert!(apart < 0.1);
    Ok(())
}
