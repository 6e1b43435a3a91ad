//! Every CUDA kernel at the shapes of Llama 2 7B, 3.2 1B, 3 8B and 70B (one layer), on a GPU:
//! `cargo bench --features cuda --bench kernels`, `-- --help` for more.
//!
//! Rows: decode rows 1, 2, 4, 8, 16; contexts 1k to 32k, batches 1 to 64; prompts of 1k to 32k; and the shapes of docs/performance.md's targets.
//! Bytes are what a launch cannot do without: operands once. How it is measured is told in `benches/device`.
//! `--smoke` launches each once on the simulator, which checks it, at an eighth of the heads.

mod device;

use std::process::ExitCode;

use bytemuck::Zeroable;
use device::{Bench, Case, Work};
use warploom::{
    Result,
    checkpoint::{Config, Dtype, Published},
    driver::Buffer,
    kernels::{
        AcceptArgs, Adamw, AdamwArgs, AttentionDecode, AttentionDecodeArgs, AttentionPrefillArgs, EmbedArgs,
        GemmArgs, Linear, LinearArgs, LinearEpilogue, LinearNorm, LinearProjection, MAX_DRAFT, PageLayout,
        PageTable, QuantizeFp8RowsArgs, RmsNormArgs, RopeAppendArgs, RoundRows, RowTable, Rows, RowsMut,
        Sample, SampleArgs, SamplePass, SwigluArgs,
        params::{WlAdamwStatistics, WlAdamwStep, WlChoice, WlRound, WlSequence},
    },
    mask::{Mask, Pattern},
    optimizer::{Settings, Step},
    results::{
        Row, shapes,
        targets::{D64, D128, LLAMA3_8B_HEADS, PROMPT_ROWS},
    },
};

/// Positions of a page.
const PAGE: usize = 64;
const DTYPE: Dtype = Dtype::Bf16;
/// Bytes of a number of that type.
const SIZE: usize = 2;

fn main() -> ExitCode {
    device::main(|bench| {
        let cases = Cases::of(bench);
        bench.cases(cases)
    })
}

/// Sizes of a model's layer.
#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    intermediate: usize,
    /// Query heads, key and value heads, their width.
    heads: [usize; 3],
    vocab: usize,
}

impl Shape {
    fn new(config: &Config, smoke: bool) -> Shape {
        let Config { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *config;
        if !smoke {
            return Shape { hidden, intermediate, heads: [heads, kv_heads, head_dim], vocab };
        }
        // The same ratio of heads.
        let (q, kv) = ((heads / 8).max(1), (kv_heads / 8).max(1));
        Shape {
            hidden: 256,
            intermediate: intermediate / 16 / 64 * 64,
            heads: [q, kv, head_dim],
            vocab: 1000,
        }
    }
}

/// The rows, without those that were there already: models share shapes.
struct Cases {
    list: Vec<Case>,
    smoke: bool,
    quick: bool,
    most_bytes: usize,
    left_out: usize,
}

impl Cases {
    fn of(bench: &Bench) -> Vec<Case> {
        let (smoke, quick) = (bench.options.smoke, bench.options.quick);
        let mut cases = Cases { list: vec![], smoke, quick, most_bytes: bench.most_bytes(), left_out: 0 };
        let models: &[&str] = match (quick, smoke) {
            (true, _) => &["llama3-8b"],
            _ => &["llama2-7b", "llama3.2-1b", "llama3-8b", "llama3-70b"],
        };
        // What targets are about comes first: a run that is cut off has it.
        cases.targets();
        for model in models {
            let config = Published::named(model).expect("a published model").config();
            cases.layer(&Shape::new(&config, smoke));
        }
        if cases.left_out > 0 {
            let gb = cases.most_bytes as f64 / 1e9;
            println!(
                "{} rows are left out: they need more than {gb:.0} GB, half of the device's memory",
                cases.left_out
            );
        }
        cases.list
    }

    fn add(&mut self, case: Case) {
        let is_same = |other: &Case| other.row.name == case.row.name && other.row.shape == case.row.shape;
        match case.footprint <= self.most_bytes {
            true if self.list.iter().any(is_same) => {}
            true => self.list.push(case),
            false => self.left_out += 1,
        }
    }

    /// `count`, or fewer in a smoke run.
    fn few<T: Copy>(&self, all: &[T], quick: usize) -> Vec<T> {
        let count = match (self.smoke, self.quick) {
            (true, _) => 1,
            (_, true) => quick,
            _ => all.len(),
        };
        all.iter().copied().take(count).collect()
    }

    /// The shapes of `src/results/targets.rs` that no layer has.
    fn targets(&mut self) {
        let scale = if self.smoke { 256 } else { 1 };
        let prompt = PROMPT_ROWS / scale;
        let heads = |heads: [usize; 3]| if scale > 1 { [2, 1, heads[2]] } else { heads };
        for (mask, of, rows) in [
            (Mask::CAUSAL, D128, vec![4096, 8192, 16384]),
            (full(), D128, vec![4096, 8192, 16384]),
            (Mask::CAUSAL, D64, vec![8192, 16384]),
            (window(1024 / scale), D128, vec![16384]),
            (Mask::CAUSAL, LLAMA3_8B_HEADS, vec![4096, 16384]),
        ] {
            for rows in self.few(&rows, 3) {
                self.add(attention_prefill(mask, heads(of), PROMPT_ROWS / rows, rows / scale));
            }
        }
        for width in [4096, 8192] {
            self.add(rms_norm(prompt, width / scale.min(16)));
        }
        self.add(swiglu(prompt, 14336 / scale.min(56)));
        self.add(rope_append(prompt, heads(LLAMA3_8B_HEADS)));
    }

    fn layer(&mut self, shape: &Shape) {
        let &Shape { hidden, intermediate, heads, vocab } = shape;
        let [q, kv, d] = heads;
        let (q_width, kv_width) = (q * d, kv * d);
        let products = [
            Product { inputs: hidden, features: [q_width, kv_width, kv_width], norm: true, ..Product::PLAIN },
            Product {
                inputs: q_width,
                features: [hidden, 0, 0],
                epilogue: LinearEpilogue::Add,
                ..Product::PLAIN
            },
            Product {
                inputs: hidden,
                features: [intermediate, intermediate, 0],
                norm: true,
                epilogue: LinearEpilogue::SwiGlu,
            },
            Product {
                inputs: intermediate,
                features: [hidden, 0, 0],
                epilogue: LinearEpilogue::Add,
                ..Product::PLAIN
            },
        ];
        let head = Product {
            inputs: hidden,
            features: [vocab, 0, 0],
            norm: true,
            epilogue: LinearEpilogue::StoreF32,
        };
        let most = if self.smoke { 2 } else { 16 };
        for rows in [1, 2, 4, 8, 16].into_iter().filter(|rows| *rows <= most) {
            for product in products.iter().chain([&head]) {
                self.add(linear(rows, *product));
            }
        }
        for rows in if self.smoke { vec![64] } else { self.few(&[4096, 512], 1) } {
            for product in products {
                self.add(gemm(rows, product));
            }
            self.add(quantize_fp8_rows(rows, intermediate));
        }
        let rows = if self.smoke { vec![1, 16] } else { self.few(&[1, 16, 4096], 3) };
        for rows in rows {
            self.add(rms_norm(rows, hidden));
            self.add(swiglu(rows, intermediate));
            self.add(rope_append(rows, heads));
            self.add(embed(rows, hidden, vocab));
        }
        for (keys, sequences, rows) in self.decodes() {
            self.add(attention_decode(heads, sequences, rows, keys));
        }
        let prompts =
            if self.smoke { vec![64] } else { self.few(&[1024, 4096, 32768, 2048, 8192, 16384], 2) };
        for rows in prompts {
            self.add(attention_prefill(Mask::CAUSAL, heads, 1, rows));
        }
        for drawn in [false, true] {
            self.add(sample(vocab, drawn));
        }
        self.add(accept(vocab));
        self.add(adamw(hidden * if self.smoke { 16 } else { hidden }));
    }

    /// Keys, sequences and rows of each of decode attention.
    fn decodes(&self) -> Vec<(usize, usize, usize)> {
        if self.smoke {
            return vec![(200, 2, 1), (300, 1, 2)];
        }
        let mut list = vec![];
        for keys in [1024, 4096, 16384, 2048, 8192, 32768] {
            for sequences in [1, 32, 2, 4, 8, 16, 64] {
                list.push((keys, sequences, 1));
            }
            list.extend([2, 4, 8, 16].map(|rows| (keys, 1, rows)));
        }
        if self.quick {
            list.retain(|(keys, sequences, rows)| {
                [1024, 4096, 16384].contains(keys) && [1, 32].contains(sequences) && *rows == 1
            });
        }
        list
    }
}

fn full() -> Mask {
    Mask { pattern: Pattern::Full, prefix: 0 }
}

fn window(keys: usize) -> Mask {
    Mask { pattern: Pattern::Window { keys }, prefix: 0 }
}

/// A row bound by bytes.
fn moves(name: &str, shape: String, bytes: usize, ceiling: &str) -> Row {
    Row { bytes: Some(bytes as u64), ceiling: Some(ceiling.into()), ..Row::new(name, shape) }
}

/// A row bound by arithmetic.
fn computes(name: &str, shape: String, flop: u64, bytes: usize) -> Row {
    Row { flop: Some(flop), ..moves(name, shape, bytes, "matmul bf16") }
}

fn rows(memory: &Buffer, stride: usize) -> Rows<'_> {
    Rows { view: memory.view(), stride }
}

/// The projections of [`Product::weights`] as a launch takes them.
fn projections<'w, P>(
    weights: &'w [(Buffer, usize, usize)],
    inputs: usize,
    of: impl Fn(Rows<'w>, usize, usize) -> P,
) -> [Option<P>; 3] {
    std::array::from_fn(|i| {
        weights.get(i).map(|(weight, features, column)| of(rows(weight, inputs), *features, *column))
    })
}

/// To write: each launch of a stream comes after the one before it.
fn rows_mut(memory: &Buffer, stride: usize) -> RowsMut<'_> {
    RowsMut { view: memory.view_to_share(), stride }
}

/// Sums of squares of rows: f32, one for 64 features.
fn statistics_bytes(rows: usize, width: usize) -> usize {
    4 * rows * width.div_ceil(64)
}

fn rms_norm(count: usize, width: usize) -> Case {
    let all = count * width * SIZE;
    Case {
        row: moves("rms_norm", shapes::matrix(count, width), 2 * all + width * SIZE, "copy"),
        footprint: 2 * all,
        make: Box::new(move |bench| {
            let (x, weight, y) = (bench.random(all)?, bench.random(width * SIZE)?, bench.zeros(all)?);
            Ok(Box::new(move |kernels, stream| {
                kernels.rms_norm.launch(
                    stream,
                    &RmsNormArgs {
                        dtype: DTYPE,
                        rows: count,
                        width,
                        eps: 1e-5,
                        x: rows(&x, width),
                        residual: None,
                        weight: weight.view(),
                        y: rows_mut(&y, width),
                        stats: None,
                        positions: None,
                    },
                )
            }))
        }),
    }
}

fn swiglu(count: usize, width: usize) -> Case {
    let all = count * width * SIZE;
    Case {
        row: moves("swiglu", shapes::matrix(count, width), 3 * all, "copy"),
        footprint: 3 * all,
        make: Box::new(move |bench| {
            let (gate, up, out) = (bench.random(all)?, bench.random(all)?, bench.zeros(all)?);
            Ok(Box::new(move |kernels, stream| {
                kernels.swiglu.launch(
                    stream,
                    &SwigluArgs {
                        dtype: DTYPE,
                        rows: count,
                        width,
                        gate: rows(&gate, width),
                        up: rows(&up, width),
                        out: rows_mut(&out, width),
                        positions: None,
                    },
                )
            }))
        }),
    }
}

fn embed(count: usize, width: usize, vocab: usize) -> Case {
    let all = count * width * SIZE;
    Case {
        row: moves(
            "embed",
            shapes::matrix(count, width),
            2 * all + 8 * count + statistics_bytes(count, width),
            "copy",
        ),
        footprint: vocab * width * SIZE,
        make: Box::new(move |bench| {
            let table = bench.random(vocab * width * SIZE)?;
            // Rows from all over the table.
            let tokens = bench.numbers((0..count).map(|i| i * 7919 % vocab))?;
            let (positions, out) = (bench.numbers(0..count)?, bench.zeros(all)?);
            let stats = bench.zeros(statistics_bytes(count, width))?;
            Ok(Box::new(move |kernels, stream| {
                kernels.embed.launch(
                    stream,
                    &EmbedArgs {
                        dtype: DTYPE,
                        rows: count,
                        width,
                        vocabulary: vocab,
                        table: rows(&table, width),
                        tokens: tokens.view(),
                        positions: Some(positions.view()),
                        out: rows_mut(&out, width),
                        stats: Some(stats.view_to_share()),
                    },
                )
            }))
        }),
    }
}

fn quantize_fp8_rows(count: usize, width: usize) -> Case {
    let all = count * width;
    Case {
        row: moves("quantize_fp8_rows", shapes::matrix(count, width), all * SIZE + all + 4 * count, "copy"),
        footprint: 3 * all,
        make: Box::new(move |bench| {
            let (x, q, scales) = (bench.random(all * SIZE)?, bench.zeros(all)?, bench.zeros(4 * count)?);
            Ok(Box::new(move |kernels, stream| {
                kernels.quantize_fp8_rows.launch(
                    stream,
                    QuantizeFp8RowsArgs {
                        dtype: DTYPE,
                        rows: count,
                        width,
                        bound: Some(1200.0),
                        x: rows(&x, width),
                        q: rows_mut(&q, width),
                        scales: scales.view_to_share(),
                        positions: None,
                    },
                )
            }))
        }),
    }
}

/// A product of a layer.
#[derive(Clone, Copy)]
struct Product {
    inputs: usize,
    /// Of each projection; 0 for none.
    features: [usize; 3],
    /// RMSNorm of x within it; a prompt's is a launch of its own.
    norm: bool,
    epilogue: LinearEpilogue,
}

impl Product {
    const PLAIN: Product =
        Product { inputs: 0, features: [0; 3], norm: false, epilogue: LinearEpilogue::Store };

    /// Features and the column at which they begin.
    fn projections(&self) -> Vec<(usize, usize)> {
        // Gate and up give one column together.
        let step = if self.epilogue == LinearEpilogue::SwiGlu { 0 } else { 1 };
        let mut column = 0;
        let begin = |features| {
            column += step * features;
            (features, column - step * features)
        };
        self.features.into_iter().filter(|features| *features > 0).map(begin).collect()
    }

    /// Random weights of each projection, with its features and column.
    fn weights(&self, bench: &Bench) -> Result<Vec<(Buffer, usize, usize)>> {
        let of = |(features, column)| Ok((bench.random(features * self.inputs * SIZE)?, features, column));
        self.projections().into_iter().map(of).collect()
    }

    fn outputs(&self) -> usize {
        self.features.iter().sum()
    }

    fn width(&self) -> usize {
        self.projections().iter().map(|(features, column)| column + features).max().unwrap_or(0)
    }

    fn weight_bytes(&self) -> usize {
        self.outputs() * self.inputs * SIZE
    }

    /// Bytes of `count` rows of the result.
    fn out_bytes(&self, count: usize) -> usize {
        count * self.width() * if self.epilogue == LinearEpilogue::StoreF32 { 4 } else { SIZE }
    }

    /// Weights and x once, the result, and the old residual where it is added to.
    fn bytes(&self, count: usize) -> usize {
        let out = self.out_bytes(count);
        let old = if self.epilogue == LinearEpilogue::Add { out } else { 0 };
        self.weight_bytes() + count * self.inputs * SIZE + out + old
    }

    fn flop(&self, count: usize) -> u64 {
        2 * count as u64 * self.outputs() as u64 * self.inputs as u64
    }
}

/// Products of few rows stream their weights.
fn linear(count: usize, product: Product) -> Case {
    let Product { inputs, epilogue, .. } = product;
    let (width, outputs) = (product.width(), product.outputs());
    Case {
        row: Row {
            flop: Some(product.flop(count)),
            ..moves("linear", shapes::product(count, outputs, inputs), product.bytes(count), "read")
        },
        footprint: product.weight_bytes(),
        make: Box::new(move |bench| {
            let x = bench.random(count * inputs * SIZE)?;
            let weights = product.weights(bench)?;
            let norm = bench.random(inputs * SIZE)?;
            let stats = bench.positive(statistics_bytes(count, inputs))?;
            let out = bench.zeros(product.out_bytes(count))?;
            let out_stats = bench.zeros(statistics_bytes(count, width))?;
            let scratch = bench.zeros(Linear::MOST_SCRATCH)?;
            Ok(Box::new(move |kernels, stream| {
                let list = projections(&weights, inputs, |weight, features, column| LinearProjection {
                    weight,
                    scales: None,
                    bias: None,
                    features,
                    column,
                });
                let args = LinearArgs {
                    dtype: DTYPE,
                    rows: count,
                    inputs,
                    x: rows(&x, inputs),
                    x_scales: None,
                    positions: None,
                    prefetch: true,
                    norm: product.norm.then(|| LinearNorm {
                        weight: norm.view(),
                        eps: 1e-5,
                        stats: stats.view(),
                    }),
                    projections: list,
                    epilogue,
                    out: rows_mut(&out, width),
                    out_stats: (epilogue == LinearEpilogue::Add).then(|| out_stats.view_to_share()),
                };
                kernels.linear.launch(stream, args, scratch.view_to_share())
            }))
        }),
    }
}

fn gemm(count: usize, product: Product) -> Case {
    let Product { inputs, epilogue, .. } = product;
    let (width, outputs) = (product.width(), product.outputs());
    Case {
        row: computes(
            "gemm",
            shapes::product(count, outputs, inputs),
            product.flop(count),
            product.bytes(count),
        ),
        footprint: product.bytes(count),
        make: Box::new(move |bench| {
            let x = bench.random(count * inputs * SIZE)?;
            let weights = product.weights(bench)?;
            let out = bench.zeros(product.out_bytes(count))?;
            Ok(Box::new(move |kernels, stream| {
                let list = projections(&weights, inputs, |weight, features, column| LinearProjection {
                    weight,
                    scales: None,
                    bias: None,
                    features,
                    column,
                });
                let args = GemmArgs {
                    dtype: DTYPE,
                    rows: count,
                    inputs,
                    x: rows(&x, inputs),
                    x_scales: None,
                    projections: list,
                    epilogue,
                    out: rows_mut(&out, width),
                    out_stats: None,
                };
                kernels.gemm.launch(stream, args)
            }))
        }),
    }
}

/// Keys and values of sequences of one length, in pages that lie in no order, and the rows that go with them.
struct Cache {
    layout: PageLayout,
    k: Buffer,
    v: Buffer,
    table: Buffer,
    /// i32 `[sequences]`.
    slots: Buffer,
    lengths: Buffer,
    /// i32 `[sequences + 1]`.
    offsets: Buffer,
    /// i32 `[sequences · rows]`.
    positions: Buffer,
    row_slots: Buffer,
    sequences: usize,
}

impl Cache {
    /// The last `rows` of `keys` positions of each sequence.
    fn new(bench: &Bench, heads: [usize; 3], sequences: usize, rows: usize, keys: usize) -> Result<Cache> {
        let [_, kv_heads, head_dim] = heads;
        let each = keys.div_ceil(PAGE);
        let layout = PageLayout::heads_first(sequences * each, PAGE, kv_heads, head_dim);
        let bytes = layout.pages * layout.page_stride * SIZE;
        // A step that shares no factor with the number of pages meets each of them once.
        let step = (layout.pages * 5 / 8..).find(|step| gcd(*step, layout.pages) == 1).unwrap_or(1);
        let range = |_| keys - rows..keys;
        Ok(Cache {
            layout,
            k: bench.random(bytes)?,
            v: bench.random(bytes)?,
            table: bench.numbers((0..layout.pages).map(|i| i * step % layout.pages))?,
            slots: bench.numbers(0..sequences)?,
            lengths: bench.numbers((0..sequences).map(|_| keys))?,
            offsets: bench.numbers((0..=sequences).map(|i| i * rows))?,
            positions: bench.numbers((0..sequences).flat_map(range))?,
            row_slots: bench.numbers((0..sequences * rows).map(|row| row / rows))?,
            sequences,
        })
    }

    fn table(&self) -> PageTable<'_> {
        let stride = self.layout.pages / self.sequences;
        PageTable { view: self.table.view(), sequences: self.sequences, stride }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Bytes of keys and values of that many positions.
fn kv_bytes([_, kv_heads, head_dim]: [usize; 3], positions: usize) -> usize {
    2 * positions * kv_heads * head_dim * SIZE
}

fn attention_decode(heads: [usize; 3], sequences: usize, count: usize, keys: usize) -> Case {
    let [q_heads, _, head_dim] = heads;
    let width = q_heads * head_dim;
    let (tokens, kv) = (sequences * count, kv_bytes(heads, sequences * keys));
    let bytes = kv + 2 * tokens * width * SIZE;
    Case {
        row: Row {
            // Of all keys: the last rows' are visible to some rows alone.
            flop: Some(4 * (tokens * width) as u64 * keys as u64),
            ..moves("attention_decode", shapes::decode(heads, sequences, count, keys), bytes, "read")
        },
        footprint: kv,
        make: Box::new(move |bench| {
            let cache = Cache::new(bench, heads, sequences, count, keys)?;
            let (q, out) = (bench.random(tokens * width * SIZE)?, bench.zeros(tokens * width * SIZE)?);
            let attend = Attend { cache, q, out, tokens, count, keys, heads };
            let attention = bench.kernels.attention_decode.clone();
            let scratch = bench.zeros(attention.scratch_bytes(&attend.args()))?;
            Ok(attend.launch(attention, scratch))
        }),
    }
}

/// What decode attention works on.
struct Attend {
    cache: Cache,
    q: Buffer,
    out: Buffer,
    tokens: usize,
    count: usize,
    keys: usize,
    heads: [usize; 3],
}

impl Attend {
    fn args(&self) -> AttentionDecodeArgs<'_> {
        let [heads, _, head_dim] = self.heads;
        let cache = &self.cache;
        AttentionDecodeArgs {
            dtype: DTYPE,
            tokens: self.tokens,
            sequences: cache.sequences,
            heads,
            q: rows(&self.q, heads * head_dim),
            out: rows_mut(&self.out, heads * head_dim),
            lse: None,
            layout: cache.layout,
            k: cache.k.view(),
            v: cache.v.view(),
            table: cache.table(),
            slots: Some(cache.slots.view()),
            lengths: cache.lengths.view(),
            offsets: cache.offsets.view(),
            positions: Some(cache.positions.view()),
            max_rows: self.count,
            max_keys: self.keys.next_multiple_of(PAGE),
            mask: Mask::CAUSAL,
            documents: None,
            tree: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: 0.0,
            sinks: None,
        }
    }

    fn launch(self, attention: AttentionDecode, scratch: Buffer) -> Work {
        Box::new(move |_, stream| attention.launch(stream, &self.args(), scratch.view_to_share()))
    }
}

fn attention_prefill(mask: Mask, heads: [usize; 3], sequences: usize, count: usize) -> Case {
    let [q_heads, _, head_dim] = heads;
    let width = q_heads * head_dim;
    let tokens = sequences * count;
    let pairs: usize = (0..count).map(|row| mask.visible(row, count, 0).count()).sum();
    let flop = 4 * (sequences * q_heads * head_dim) as u64 * pairs as u64;
    let bytes = kv_bytes(heads, tokens) + 2 * tokens * width * SIZE;
    let name = match mask.pattern {
        Pattern::Full => "full".into(),
        Pattern::Window { keys } => format!("window {keys}"),
        _ => "causal".into(),
    };
    Case {
        row: computes("attention_prefill", shapes::prompt(&name, heads, sequences, count), flop, bytes),
        footprint: bytes,
        make: Box::new(move |bench| {
            let cache = Cache::new(bench, heads, sequences, count, count)?;
            let (q, out) = (bench.random(tokens * width * SIZE)?, bench.zeros(tokens * width * SIZE)?);
            Ok(Box::new(move |kernels, stream| {
                kernels.attention_prefill.launch(
                    stream,
                    &AttentionPrefillArgs {
                        dtype: DTYPE,
                        tokens,
                        sequences,
                        heads: q_heads,
                        q: rows(&q, width),
                        out: rows_mut(&out, width),
                        lse: None,
                        layout: cache.layout,
                        k: cache.k.view(),
                        v: cache.v.view(),
                        table: cache.table(),
                        slots: Some(cache.slots.view()),
                        lengths: cache.lengths.view(),
                        offsets: cache.offsets.view(),
                        positions: Some(cache.positions.view()),
                        max_rows: count,
                        max_keys: count.next_multiple_of(PAGE),
                        mask,
                        documents: None,
                        scale: 1.0 / (head_dim as f32).sqrt(),
                        softcap: 0.0,
                        sinks: None,
                    },
                )
            }))
        }),
    }
}

fn rope_append(count: usize, heads: [usize; 3]) -> Case {
    let [q, kv, head_dim] = heads;
    let width = (q + 2 * kv) * head_dim;
    let bytes = count * (width + (q + 2 * kv) * head_dim) * SIZE + 8 * count + 4 * (head_dim / 2);
    Case {
        row: moves("rope_append", shapes::rotation(count, q, kv, head_dim), bytes, "copy"),
        footprint: bytes,
        make: Box::new(move |bench| {
            let cache = Cache::new(bench, heads, 1, count, count.max(256))?;
            let qkv = bench.random(count * width * SIZE)?;
            let frequencies = bench.positive(4 * (head_dim / 2))?;
            Ok(Box::new(move |kernels, stream| {
                kernels.rope_append.launch(
                    stream,
                    &RopeAppendArgs {
                        dtype: DTYPE,
                        rows: count,
                        heads: q,
                        qkv: rows_mut(&qkv, width),
                        positions: cache.positions.view(),
                        slots: cache.row_slots.view(),
                        frequencies: frequencies.view(),
                        magnitude: 1.0,
                        layout: cache.layout,
                        k: cache.k.view_to_share(),
                        v: cache.v.view_to_share(),
                        table: cache.table(),
                    },
                )
            }))
        }),
    }
}

/// Drafts of the rounds of `sample` and `accept`.
const DRAFTS: usize = 4;

/// A round of one sequence, but for its passes.
struct Rounds {
    states: Buffer,
    rounds: Buffer,
    tables: Vec<Buffer>,
    draft_choices: Buffer,
    verify_choices: Buffer,
    logits: Buffer,
    scratch: Buffer,
    vocab: usize,
}

impl Rounds {
    fn new(bench: &Bench, vocab: usize, temperature: f32) -> Result<Rounds> {
        let stream = &bench.queue.stream;
        let rows = DRAFTS + 1;
        let state = WlSequence {
            temperature,
            top_p: if temperature > 0.0 { 0.9 } else { 1.0 },
            repetition_penalty: 1.0,
            // A launch takes its tokens off: enough for all that are measured.
            remaining: i32::MAX,
            length: 1,
            ..WlSequence::zeroed()
        };
        Ok(Rounds {
            states: Buffer::from_slice(stream, &[state])?,
            rounds: Buffer::from_slice(stream, &[WlRound::zeroed()])?,
            tables: (0..6).map(|_| bench.numbers(0..rows)).collect::<Result<_>>()?,
            draft_choices: Buffer::from_slice(stream, &vec![WlChoice::zeroed(); MAX_DRAFT])?,
            verify_choices: Buffer::from_slice(stream, &vec![WlChoice::zeroed(); rows])?,
            logits: bench.random(rows * vocab * 4)?,
            scratch: bench.zeros(Sample::scratch_bytes(rows, vocab))?,
            vocab,
        })
    }

    fn rows(&self) -> RoundRows<'_> {
        let view = |i: usize| self.tables[i].view_to_share();
        let table = |i: usize| RowTable { tokens: view(i), positions: view(i + 1), sequences: view(i + 2) };
        // All rows are of sequence 0.
        RoundRows {
            steps: DRAFTS + 1,
            draft_rows: 1,
            draft: table(0),
            verify_rows: DRAFTS + 1,
            verify: table(3),
        }
    }
}

/// One row of the verification, greedy or with temperature and top-p.
fn sample(vocab: usize, drawn: bool) -> Case {
    let shape = format!(
        "{}{}",
        shapes::matrix(1, vocab),
        if drawn { ", temperature 0.8, top-p 0.9" } else { ", greedy" }
    );
    Case {
        row: moves("sample", shape, 4 * vocab + size_of::<WlChoice>(), "read"),
        footprint: 4 * vocab,
        make: Box::new(move |bench| {
            let mut round = Rounds::new(bench, vocab, if drawn { 0.8 } else { 0.0 })?;
            round.tables[5] = bench.numbers([0; DRAFTS + 1])?;
            Ok(Box::new(move |kernels, stream| {
                kernels.sample.launch(
                    stream,
                    &SampleArgs {
                        pass: SamplePass::Verify,
                        rows: 0..1,
                        vocab: round.vocab,
                        logits: rows(&round.logits, round.vocab),
                        round: round.rows(),
                        slots: 1,
                        states: round.states.view_to_share(),
                        seen: None,
                        choices: round.verify_choices.view_to_share(),
                        probabilities: None,
                        hashes: None,
                        scratch: round.scratch.view_to_share(),
                    },
                )
            }))
        }),
    }
}

/// Acceptance of four greedy drafts, all kept: dependent reads of memory, not bytes. It ends the round, so a copy of the sequence as it was
/// comes before it, which counts.
fn accept(vocab: usize) -> Case {
    let note = "with the copy of 296 bytes that sets the sequence back";
    let shape = format!("{DRAFTS} drafts, greedy, vocabulary {vocab}");
    Case {
        row: Row { note: Some(note.into()), ..Row::new("accept", shape) },
        footprint: 1 << 12,
        make: Box::new(move |bench| {
            let round = Rounds::new(bench, vocab, 0.0)?;
            let stream = &bench.queue.stream;
            let mut state = WlSequence {
                verify_row: 0,
                asked: DRAFTS as i32,
                limit: DRAFTS as i32,
                drafted: DRAFTS as i32,
                rows: DRAFTS as i32 + 1,
                closed: 1,
                repetition_penalty: 1.0,
                remaining: 1 << 20,
                length: 1,
                ..WlSequence::zeroed()
            };
            state.drafts[..DRAFTS].copy_from_slice(&[1, 2, 3, 4]);
            let drafted = Buffer::from_slice(stream, &[state])?;
            let choice = |id| WlChoice { id, ..WlChoice::zeroed() };
            let choices = Buffer::from_slice(stream, &[1, 2, 3, 4, 5].map(choice))?;
            Ok(Box::new(move |kernels, stream| {
                stream.copy(drafted.view(), &mut round.states.view_to_share())?;
                kernels.accept.launch(
                    stream,
                    &AcceptArgs {
                        slots: 1,
                        vocab: round.vocab,
                        states: round.states.view_to_share(),
                        rounds: round.rounds.view_to_share(),
                        seen: None,
                        draft_choices: round.draft_choices.view(),
                        verify_first: 0,
                        verify_rows: DRAFTS + 1,
                        verify_choices: choices.view(),
                        logits: None,
                    },
                )
            }))
        }),
    }
}

/// A step over so many weights, with gradients in f32.
fn adamw(count: usize) -> Case {
    let bytes = 28 * count + size_of::<WlAdamwStep>() + size_of::<WlAdamwStatistics>();
    Case {
        row: moves("adamw", format!("{count} weights"), bytes, "copy"),
        footprint: 16 * count,
        make: Box::new(move |bench| {
            let settings = Settings::default();
            let step = WlAdamwStep::from(Step::new(&settings, 1, 1e-4, 1.0));
            let step = Buffer::from_slice(&bench.queue.stream, std::slice::from_ref(&step))?;
            let (weights, gradients, m) =
                (bench.random(4 * count)?, bench.random(4 * count)?, bench.random(4 * count)?);
            let v = bench.positive(4 * count)?;
            let statistics = bench.zeros(size_of::<WlAdamwStatistics>())?;
            let scratch = bench.zeros(Adamw::scratch_bytes(count))?;
            Ok(Box::new(move |kernels, stream| {
                kernels.adamw.launch(
                    stream,
                    AdamwArgs {
                        settings,
                        count,
                        gradient_dtype: Dtype::F32,
                        weights: weights.view_to_share(),
                        gradients: gradients.view(),
                        m: m.view_to_share(),
                        v: v.view_to_share(),
                        copy: None,
                        step: step.view(),
                        statistics: statistics.view_to_share(),
                        scratch: scratch.view_to_share(),
                    },
                )
            }))
        }),
    }
}
