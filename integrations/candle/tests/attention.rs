//! Attention against the same of candle's own operations.

mod common;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::{Random, assert_same, numbers, refusal, rounding};
use warploom_candle::{Attention, Mask, Pages, Pattern, attention, paged_attention};

const TYPES: [DType; 2] = [DType::BF16, DType::F16];

/// Whether a row at position `q` sees key `k`, told here once more.
fn sees(mask: &Mask, q: usize, k: usize) -> bool {
    let of_pattern = match mask.pattern {
        Pattern::Causal => k <= q,
        Pattern::Window { keys } => k <= q && q - k < keys,
        Pattern::Chunk { keys } => k <= q && k / keys == q / keys,
        Pattern::Overlap { keys } => k <= q && q / keys - k / keys <= 1,
        Pattern::Block { keys } => k / keys == q / keys,
        // From half a block before the row's own to half a block behind it.
        Pattern::Blockwise { keys } => {
            let begin = q / keys * keys;
            k + keys / 2 >= begin && k < begin + keys + keys / 2
        }
        Pattern::Full => true,
    };
    let of_prefix = match mask.is_causal() {
        true => k < mask.prefix && k <= q,
        false => k < mask.prefix || q < mask.prefix,
    };
    of_pattern || of_prefix
}

/// Softmax(scale · q kᵀ + mask) · v in f32.
fn reference(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<Tensor> {
    let (batch, rows, heads, head_dim) = q.dims4()?;
    let (_, keys, kv_heads, _) = k.dims4()?;
    let heads_first = |x: &Tensor| x.to_dtype(DType::F32)?.transpose(1, 2)?.contiguous();
    let repeated = |x: &Tensor| {
        let shape = (batch, kv_heads, heads / kv_heads, keys, head_dim);
        heads_first(x)?.unsqueeze(2)?.broadcast_as(shape)?.reshape((batch, heads, keys, head_dim))
    };
    let (q, k, v) = (heads_first(q)?, repeated(k)?, repeated(v)?);
    let mut scores = (q.matmul(&k.t()?)? * f64::from(options.scale))?;
    if options.softcap != 0.0 {
        scores = ((scores / f64::from(options.softcap))?.tanh()? * f64::from(options.softcap))?;
    }
    let hidden = (0..rows * keys).map(|i| match sees(&options.mask, keys - rows + i / keys, i % keys) {
        true => 0.0,
        false => f32::NEG_INFINITY,
    });
    let hidden = Tensor::from_vec(hidden.collect::<Vec<f32>>(), (rows, keys), &Device::Cpu)?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(&hidden)?, D::Minus1)?;
    weights.matmul(&v)?.transpose(1, 2)?.contiguous()
}

/// Compares with the reference, of the same inputs in f32. The largest v is 1.
///
/// The products are exact and their sums in f32. Each weight is rounded to the type once, which their sum is not, and the result once: 2u of the largest
/// v. tanh is within 2^-11 of itself, so a softened score within softcap · 2^-11, a weight in the sum and one beneath it twice that. All else
/// (2^x, f32 sums, candle's own) is of the order of 2^-18.
fn assert_close(out: &Tensor, wanted: &Tensor, options: &Attention, what: &str) -> Result<()> {
    assert_eq!(out.dims(), wanted.dims(), "{what}");
    let tolerance =
        2.0 * rounding(out.dtype()) + f64::from(options.softcap) * 2f64.powi(-10) + 2f64.powi(-17);
    for (i, (out, wanted)) in numbers(out)?.iter().zip(numbers(wanted)?).enumerate() {
        assert!((out - wanted).abs() <= tolerance, "{what}, {i}: {out}, not {wanted}");
    }
    Ok(())
}

struct Case {
    batch: usize,
    kv_heads: usize,
    /// Query heads of a kv head.
    group: usize,
    head_dim: usize,
    rows: usize,
    keys: usize,
    mask: &'static str,
    softcap: f32,
}

impl Case {
    const fn new(
        (batch, kv_heads, group, head_dim): (usize, usize, usize, usize),
        (rows, keys): (usize, usize),
        mask: &'static str,
    ) -> Self {
        Case { batch, kv_heads, group, head_dim, rows, keys, mask, softcap: 0.0 }
    }

    fn options(&self) -> Attention {
        // Scores up to 3, so that weights differ.
        let scale = 5.0 / (self.head_dim as f32).sqrt();
        Attention { scale, mask: self.mask.parse().unwrap(), softcap: self.softcap }
    }

    fn tensors(&self, random: &mut Random, dtype: DType) -> Result<[Tensor; 3]> {
        let Case { batch, kv_heads, group, head_dim, rows, keys, .. } = *self;
        let kv = [batch, keys, kv_heads, head_dim];
        let q = random.tensor(&[batch, rows, kv_heads * group, head_dim], dtype)?;
        Ok([q, random.tensor(&kv, dtype)?, random.tensor(&kv, dtype)?])
    }
}

/// One row to as many as there are keys; few rows and many; every width of a kernel and some between; keys in one part and in three.
const CASES: [Case; 19] = [
    Case::new((1, 1, 1, 64), (1, 1), "full"),
    Case::new((3, 2, 4, 64), (1, 33), "full"),
    Case::new((2, 1, 8, 128), (1, 100), "window:20"),
    Case::new((1, 2, 1, 128), (7, 7), "full"),
    Case::new((2, 1, 4, 40), (7, 33), "chunk:16"),
    Case::new((2, 2, 4, 80), (33, 33), "window:8+sinks:2"),
    Case::new((1, 1, 8, 256), (7, 100), "bidirectional"),
    Case::new((3, 1, 1, 8), (33, 100), "block:24"),
    Case { softcap: 2.0, ..Case::new((2, 1, 4, 64), (1, 300), "full") },
    Case::new((1, 2, 4, 128), (100, 100), "full"),
    Case::new((2, 1, 4, 64), (100, 100), "window:16"),
    Case::new((1, 1, 8, 72), (100, 100), "chunk:32"),
    Case::new((1, 1, 1, 136), (65, 97), "overlap:24"),
    Case { softcap: 5.0, ..Case::new((1, 2, 1, 96), (70, 100), "bidirectional") },
    Case::new((3, 1, 1, 64), (100, 100), "bidirectional"),
    Case::new((1, 3, 2, 64), (1, 7), "full"),
    Case::new((1, 1, 4, 256), (66, 66), "full+sinks:3"),
    Case::new((1, 2, 1, 64), (33, 33), "block:7+globals:2"),
    Case::new((2, 1, 2, 128), (90, 90), "blockwise:16"),
];

#[test]
fn agrees_with_candle() -> Result<()> {
    let mut random = Random::new(1);
    for dtype in TYPES {
        for case in &CASES {
            let ([q, k, v], options) = (case.tensors(&mut random, dtype)?, case.options());
            let what = format!("{dtype:?}, {:?} over {:?}, {}", q.dims(), k.dims(), case.mask);
            let out = attention(&q, &k, &v, &options)?;
            assert_eq!(out.dtype(), dtype);
            assert_close(&out, &reference(&q, &k, &v, &options)?, &options, &what)?;
        }
    }
    Ok(())
}

/// A key more or less, or another head's, is outside the tolerance that the test above allows.
#[test]
fn the_comparison_is_fine_enough() -> Result<()> {
    let mut random = Random::new(2);
    for dtype in TYPES {
        for case in CASES.iter().filter(|case| case.keys > 1) {
            let ([q, k, v], options) = (case.tensors(&mut random, dtype)?, case.options());
            let right = numbers(&reference(&q, &k, &v, &options)?)?;
            let tolerance =
                2.0 * rounding(dtype) + f64::from(options.softcap) * 2f64.powi(-10) + 2f64.powi(-17);
            // Keys and values moved by one.
            let moved = |x: &Tensor| x.roll(1, 1);
            let wrong = numbers(&reference(&q, &k, &moved(&v)?, &options)?)?;
            let off =
                right.iter().zip(wrong).filter(|(right, wrong)| (*right - wrong).abs() > tolerance).count();
            assert!(off * 2 > right.len(), "{dtype:?} {}: {off} of {}", case.mask, right.len());
        }
    }
    Ok(())
}

#[test]
fn strides_and_offsets_change_no_bit() -> Result<()> {
    let mut random = Random::new(3);
    // For decoding and for prompts.
    for case in [Case::new((2, 2, 4, 64), (7, 33), "full"), Case::new((2, 2, 2, 64), (70, 70), "window:9")] {
        let ([q, k, v], options) = (case.tensors(&mut random, DType::BF16)?, case.options());
        let wanted = attention(&q, &k, &v, &options)?;
        assert_close(&wanted, &reference(&q, &k, &v, &options)?, &options, "contiguous")?;

        // Heads before positions, as candle's caches are.
        let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous()?.transpose(1, 2);
        let out = attention(&q, &heads_first(&k)?, &heads_first(&v)?, &options)?;
        assert_same(&out, &wanted, "heads first")?;

        // Out of longer caches, whose other positions are NaN.
        let within = |x: &Tensor, before: usize, after: usize| {
            let (batch, _, heads, head_dim) = x.dims4()?;
            let nan = |count| {
                Tensor::full(f32::NAN, (batch, count, heads, head_dim), &Device::Cpu)?.to_dtype(x.dtype())
            };
            Tensor::cat(&[&nan(before)?, x, &nan(after)?], 1)?.narrow(1, before, x.dim(1)?)
        };
        let out = attention(&q, &within(&k, 3, 5)?, &within(&v, 3, 5)?, &options)?;
        assert_same(&out, &wanted, "within a cache")?;
        let k_cache = heads_first(&within(&k, 0, 7)?.contiguous()?)?;
        let v_cache = heads_first(&within(&v, 0, 7)?.contiguous()?)?;
        assert_same(&attention(&q, &k_cache, &v_cache, &options)?, &wanted, "a copy of it")?;

        // Rows of a fused projection: q, k and v side by side.
        let flat = |x: &Tensor| x.flatten_from(2);
        let keys_of_rows = k.narrow(1, k.dim(1)? - q.dim(1)?, q.dim(1)?)?;
        let fused = Tensor::cat(&[&flat(&keys_of_rows)?, &flat(&q)?], 2)?;
        let heads = fused.reshape((q.dim(0)?, q.dim(1)?, (), q.dim(3)?))?;
        let q_of_fused = heads.narrow(2, k.dim(2)?, q.dim(2)?)?;
        assert!(!q_of_fused.is_contiguous());
        assert_same(&attention(&q_of_fused, &k, &v, &options)?, &wanted, "fused q")?;
    }

    // A row alone: its heads are next to each other in either order.
    let case = Case::new((2, 2, 4, 64), (1, 33), "full");
    let ([q, k, v], options) = (case.tensors(&mut random, DType::F16)?, case.options());
    let transposed = q.reshape((2, 8, 1, 64))?.transpose(1, 2)?;
    assert_same(&attention(&transposed, &k, &v, &options)?, &attention(&q, &k, &v, &options)?, "one row")
}

/// A cache in shuffled pages with NaN wherever no key is.
struct Cache {
    k: Tensor,
    v: Tensor,
    table: Vec<u32>,
    width: usize,
}

impl Cache {
    fn new(random: &mut Random, keys: &[(Tensor, Tensor)], page_size: usize, width: usize) -> Result<Cache> {
        let pages = keys.len() * width + 3;
        let mut ids: Vec<u32> = (0..pages as u32).collect();
        (1..pages).rev().for_each(|i| ids.swap(i, random.below(i + 1)));
        let (_, _, kv_heads, head_dim) = keys[0].0.dims4()?;
        let dtype = keys[0].0.dtype();
        let nan = Tensor::full(f32::NAN, (page_size, kv_heads, head_dim), &Device::Cpu)?.to_dtype(dtype)?;
        let (mut k, mut v) = (vec![nan.clone(); pages], vec![nan.clone(); pages]);
        let mut table = vec![];
        for (of_k, of_v) in keys {
            for page in 0..width {
                let id = ids.pop().unwrap_or_default();
                let begin = page * page_size;
                let count = of_k.dim(1)?.saturating_sub(begin).min(page_size);
                if count == 0 {
                    // Ids of no page, where no row looks.
                    table.push(u32::MAX);
                    continue;
                }
                table.push(id);
                for (cache, of) in [(&mut k, of_k), (&mut v, of_v)] {
                    let held = of.get(0)?.narrow(0, begin, count)?;
                    cache[id as usize] = Tensor::cat(&[&held, &nan.narrow(0, 0, page_size - count)?], 0)?;
                }
            }
        }
        Ok(Cache { k: Tensor::stack(&k, 0)?, v: Tensor::stack(&v, 0)?, table, width })
    }

    fn pages(&self, lengths: &[u32], dtype: DType, max_keys: usize) -> Result<Pages> {
        let numbers = |data: &[u32], shape: &[usize]| match dtype {
            DType::I32 => Tensor::from_vec(data.iter().map(|x| *x as i32).collect(), shape, &Device::Cpu),
            _ => Tensor::from_slice(data, shape, &Device::Cpu),
        };
        let table = numbers(&self.table, &[lengths.len(), self.width])?;
        Ok(Pages { table, lengths: numbers(lengths, &[lengths.len()])?, max_keys })
    }
}

#[test]
fn paged_agrees_with_candle() -> Result<()> {
    let mut random = Random::new(4);
    for (dtype, rows, mask) in [
        (DType::BF16, 1, "full"),
        (DType::F16, 1, "window:12+sinks:2"),
        (DType::F16, 5, "chunk:16"),
        (DType::BF16, 66, "window:20"),
    ] {
        let (heads, kv_heads, head_dim, page_size) = (8, 2, 64, 16);
        let lengths = [100, 66, 71];
        let width = 8;
        let options = Attention { mask: mask.parse().unwrap(), ..Attention::causal(head_dim) };
        let keys = |random: &mut Random, count| random.tensor(&[1, count, kv_heads, head_dim], dtype);
        let sequences: Vec<(Tensor, Tensor)> = lengths
            .iter()
            .map(|count| Ok((keys(&mut random, *count)?, keys(&mut random, *count)?)))
            .collect::<Result<_>>()?;
        let q = random.tensor(&[3, rows, heads, head_dim], dtype)?;
        let cache = Cache::new(&mut random, &sequences, page_size, width)?;
        let lengths = lengths.map(|count| count as u32);
        let pages = cache.pages(&lengths, DType::U32, 100)?;
        let out = paged_attention(&q, &cache.k, &cache.v, &pages, &options)?;
        for (s, (k, v)) in sequences.iter().enumerate() {
            let of_sequence = q.narrow(0, s, 1)?;
            let wanted = reference(&of_sequence, k, v, &options)?;
            assert_close(&out.narrow(0, s, 1)?, &wanted, &options, &format!("{mask}, sequence {s}"))?;
            // The same bits as over contiguous keys.
            let contiguous = attention(&of_sequence, k, v, &options)?;
            assert_same(&out.narrow(0, s, 1)?, &contiguous, &format!("{mask}, sequence {s}, contiguous"))?;
        }

        // Other types of numbers, a looser bound, and the other order of a cache.
        let pages = cache.pages(&lengths, DType::I32, width * page_size)?;
        let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous()?.transpose(1, 2);
        let other = paged_attention(&q, &heads_first(&cache.k)?, &heads_first(&cache.v)?, &pages, &options)?;
        assert_same(&other, &out, "heads first")?;

        // A length that is out of range spoils its own sequence alone.
        let pages = cache.pages(&[100, 101, 71], DType::U32, 100)?;
        let spoilt = paged_attention(&q, &cache.k, &cache.v, &pages, &options)?;
        assert!(
            numbers(&spoilt.get(1)?)?.iter().all(|x| x.is_nan()),
            "rows of a length that is out of range"
        );
        assert_same(&spoilt.get(2)?, &out.get(2)?, "its neighbour")?;

        // Rows before the first key are 0.
        let pages = cache.pages(&[rows as u32 - 1, 0, 71], DType::U32, 100)?;
        let early = paged_attention(&q, &cache.k, &cache.v, &pages, &options)?;
        assert!(numbers(&early.get(0)?.get(0)?)?.iter().all(|x| *x == 0.0), "a row before the first key");
        assert!(numbers(&early.get(1)?)?.iter().all(|x| *x == 0.0), "rows without keys");
    }
    Ok(())
}

#[test]
fn threads_share_the_kernels() -> Result<()> {
    let mut random = Random::new(5);
    let case = Case::new((1, 1, 4, 64), (3, 33), "full");
    let ([q, k, v], options) = (case.tensors(&mut random, DType::BF16)?, case.options());
    let wanted = attention(&q, &k, &v, &options)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| attention(&q, &k, &v, &options))).collect();
        threads.into_iter().try_for_each(|thread| assert_same(&thread.join().unwrap()?, &wanted, "a thread"))
    })
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let mut random = Random::new(6);
    let case = Case::new((2, 2, 2, 64), (3, 16), "full");
    let [q, k, v] = case.tensors(&mut random, DType::BF16)?;
    let ok = Attention::causal(64);
    let with = |change: &dyn Fn(&mut Attention)| {
        let mut options = ok;
        change(&mut options);
        attention(&q, &k, &v, &options)
    };
    let both = |q: &Tensor, kv: &Tensor| attention(q, kv, kv, &ok);
    let head_dim = |d: usize| -> Result<Tensor> {
        let tensor = Tensor::zeros((1, 8, 2, d), DType::BF16, &Device::Cpu)?;
        both(&tensor, &tensor)
    };
    let cases = [
        (attention(&q.to_dtype(DType::F32)?, &k, &v, &ok), "q is f32; supported are bf16 and f16"),
        (attention(&q, &k.to_dtype(DType::F16)?, &v, &ok), "k is f16 and q bf16; make them one type"),
        (attention(&q, &k, &v.to_dtype(DType::F16)?, &ok), "v is f16 and q bf16"),
        (
            attention(&q.get(0)?, &k, &v, &ok),
            "q has the shape [3, 4, 64]; expected is (batch, rows, heads, head_dim)",
        ),
        (
            attention(&q, &k.get(0)?, &v, &ok),
            "k has the shape [16, 2, 64]; expected is (batch, keys, kv_heads, head_dim)",
        ),
        (attention(&q, &k, &v.narrow(1, 0, 8)?, &ok), "v has the shape [2, 8, 2, 64] and k [2, 16, 2, 64]"),
        (attention(&q.narrow(0, 0, 1)?, &k, &v, &ok), "q has a batch of 1 and k of 2"),
        (attention(&q.narrow(3, 0, 32)?.contiguous()?, &k, &v, &ok), "k has heads of 64 and q of 32"),
        (
            attention(&q.narrow(2, 0, 3)?.contiguous()?, &k, &v, &ok),
            "q has 3 heads; supported are multiples of k's, 2",
        ),
        (both(&q, &k.narrow(1, 0, 2)?), "q has 3 rows over 2 keys"),
        (both(&q.narrow(1, 0, 0)?, &k), "q is empty"),
        (both(&q, &k.narrow(1, 0, 0)?), "k is empty"),
        (head_dim(20), "q has heads of 20; supported are multiples of 8 up to 256"),
        (head_dim(264), "q has heads of 264"),
        (
            attention(&q.transpose(1, 2)?.contiguous()?.transpose(1, 2)?, &k, &v, &ok),
            "side by side: call .contiguous()",
        ),
        (
            attention(&q.narrow(1, 0, 2)?, &k, &v, &ok),
            "rows have to be equally far apart: call .contiguous()",
        ),
        (
            both(&q, &k.transpose(2, 3)?.contiguous()?.transpose(2, 3)?),
            "k of shape [2, 16, 2, 64] has strides",
        ),
        (
            both(&q, &k.narrow(2, 0, 1)?.broadcast_as((2, 16, 2, 64))?),
            "elements must not overlap: call .contiguous()",
        ),
        (
            attention(&q, &k, &v.transpose(1, 2)?.contiguous()?.transpose(1, 2)?, &ok),
            "they must be equal: call .contiguous() on both",
        ),
        (
            attention(&misplaced(&q)?, &k, &v, &ok),
            "q begins at element 1 of its storage; supported are multiples of 8: call .force_contiguous()",
        ),
        (attention(&q, &k, &misplaced(&v)?, &ok), "v begins at element 1"),
        (with(&|a| a.scale = f32::NAN), "scale: NaN; supported are -1e30 to 1e30"),
        (with(&|a| a.softcap = -1.0), "softcap: -1"),
        (with(&|a| a.mask.pattern = Pattern::Window { keys: 0 }), "mask.keys: 0; supported are 1 and more"),
    ];
    for (result, wanted) in cases {
        let said = refusal(result);
        assert!(said.starts_with("attention: ") && said.contains(wanted), "{said}, not {wanted}");
    }
    Ok(())
}

/// The same tensor one element further in its storage.
fn misplaced(x: &Tensor) -> Result<Tensor> {
    let flat = Tensor::cat(&[&x.flatten_all()?.narrow(0, 0, 1)?, &x.flatten_all()?], 0)?;
    flat.narrow(0, 1, x.elem_count())?.reshape(x.shape())
}

#[test]
fn pages_that_do_not_fit_are_refused() -> Result<()> {
    let mut random = Random::new(7);
    let (q, k) = (random.tensor(&[2, 1, 4, 64], DType::F16)?, random.tensor(&[5, 16, 2, 64], DType::F16)?);
    let table = Tensor::new(&[[0u32, 1], [2, 3]], &Device::Cpu)?;
    let lengths = Tensor::new(&[20u32, 32], &Device::Cpu)?;
    let ok = Pages { table: table.clone(), lengths: lengths.clone(), max_keys: 32 };
    let options = Attention::causal(64);
    let with = |change: &dyn Fn(&mut Pages) -> Result<()>| {
        let mut pages = ok.clone();
        change(&mut pages)?;
        paged_attention(&q, &k, &k, &pages, &options)
    };
    with(&|_| Ok(()))?;
    let short = k.narrow(1, 0, 12)?.contiguous()?;
    let cases = [
        (with(&|p| set(&mut p.table, table.to_dtype(DType::I64))), "table is i64; supported are u32 and i32"),
        (with(&|p| set(&mut p.lengths, lengths.to_dtype(DType::F32))), "lengths is f32"),
        (
            with(&|p| set(&mut p.table, table.flatten_all())),
            "table has the shape [4]; expected is (sequences, pages)",
        ),
        (with(&|p| set(&mut p.table, table.narrow(0, 0, 1))), "table is of 1 sequences and q of 2"),
        (with(&|p| set(&mut p.lengths, lengths.narrow(0, 0, 1))), "lengths is of 1 sequences and q of 2"),
        (with(&|p| set(&mut p.table, table.narrow(1, 0, 0))), "table is empty"),
        (with(&|p| set(&mut p.table, table.t())), "table is not contiguous: call .contiguous()"),
        (with(&|p| set(&mut p.max_keys, Ok(0))), "max_keys is 0; 2 pages of 16 hold 1 to 32"),
        (with(&|p| set(&mut p.max_keys, Ok(33))), "max_keys is 33"),
        (
            paged_attention(&q, &short, &short, &Pages { max_keys: 24, ..ok.clone() }, &options),
            "page_size: 12; supported are multiples of 8",
        ),
        (
            paged_attention(&q, &k.get(0)?, &k, &ok, &options),
            "expected is (pages, page_size, kv_heads, head_dim)",
        ),
    ];
    for (result, wanted) in cases {
        let said = refusal(result);
        assert!(said.starts_with("paged_attention: ") && said.contains(wanted), "{said}, not {wanted}");
    }
    Ok(())
}

fn set<T>(to: &mut T, value: Result<T>) -> Result<()> {
    *to = value?;
    Ok(())
}

#[test]
fn there_is_no_gradient_and_it_is_said() -> Result<()> {
    let q = Var::ones((1, 1, 1, 64), DType::BF16, &Device::Cpu)?;
    let loss = attention(q.as_tensor(), q.as_tensor(), q.as_tensor(), &Attention::causal(64))?.sum_all()?;
    let said = loss.backward().err().map(|e| e.to_string());
    assert_eq!(said.as_deref(), Some("backward is not supported for attention"));
    Ok(())
}
