//! The model's weights on a backend and the forward pass over them.

use std::ops::Range;

use crate::{
    backend::{
        Angles, Backend, Epilogue, HeadSide, Heads, Input, Norm, Projection, RoundSizes, Row, RowClass,
    },
    cache::Cache,
    checkpoint::{Checkpoint, Config, Tensor},
    error::{Error, Result},
    mask::Mask,
    range,
};

/// A Llama model whose weights are on backend `B`.
pub struct Llama<B: Backend> {
    config: Config,
    backend: B,
    angles: Angles,
    heads: Heads,
    embedding: B::Weight,
    layers: Vec<Layer<B::Weight>>,
    norm: B::Weight,
    /// None where the head is the embedding.
    head: Option<B::Weight>,
    layer_bytes: Vec<usize>,
    head_bytes: usize,
    embedding_row_bytes: usize,
}

/// One layer's weights.
struct Layer<W> {
    input_norm: W,
    /// `[heads · padded, hidden]`, then twice `[kv_heads · padded, hidden]`.
    qkv: [Linear<W>; 3],
    /// `[hidden, heads · padded]`.
    output: Linear<W>,
    post_norm: W,
    /// Twice `[intermediate, hidden]`.
    gate_up: [Linear<W>; 2],
    /// `[hidden, intermediate]`.
    down: Linear<W>,
}

struct Linear<W> {
    weight: W,
    bias: Option<W>,
    /// The bound of what it is multiplied with, if it is e4m3.
    fp8_bound: Option<f32>,
}

impl<W> Linear<W> {
    fn at(&self, column: usize) -> Projection<'_, W> {
        Projection { weight: &self.weight, bias: self.bias.as_ref(), column }
    }
}

/// The buffers of a forward pass, allocated once for at most [`Work::rows`] rows.
pub struct Work<B: Backend> {
    activations: Activations<B>,
    logits: B::Logits,
    descriptors: B::Rows,
    rows: usize,
    logit_rows: usize,
}

/// What rows are on their way through the layers.
struct Activations<B: Backend> {
    /// The residual stream, `[rows, hidden]`.
    hidden: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    gated: B::Buffer,
    /// What products in e4m3 read, `[rows, max(hidden, intermediate)]`; None without such weights.
    quantised: Option<B::Quantised>,
}

impl<B: Backend> Work<B> {
    /// The residual stream, `[rows, hidden]`: what [`Llama::forward`] leaves.
    pub fn hidden(&self) -> &B::Buffer {
        &self.activations.hidden
    }

    /// The residual stream, `[rows, hidden]`: what [`Llama::forward`] goes on from.
    pub fn hidden_mut(&mut self) -> &mut B::Buffer {
        &mut self.activations.hidden
    }

    /// Most rows of one [`Llama::forward`].
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Most rows of one [`Llama::head`].
    pub fn logit_rows(&self) -> usize {
        self.logit_rows
    }
}

impl<B: Backend> Llama<B> {
    /// Puts the weights of `checkpoint` on `backend`, for sequences of at most `context` positions.
    ///
    /// # Errors
    /// A missing or misshapen tensor, or a context outside 1..=[`Config::context`].
    pub fn new(checkpoint: &Checkpoint, backend: B, context: usize) -> Result<Self> {
        let config = checkpoint.config.clone();
        if context == 0 || context > config.context {
            return Err(Error::argument(
                "--context",
                format!("{context} is outside 1..={}, the positions this model was made for", config.context),
            ));
        }
        let Config { heads, kv_heads, head_dim, .. } = config;
        let heads = Heads { heads, kv_heads, head_dim, padded: backend.padded(head_dim) };
        let Config { hidden, intermediate, .. } = config;
        let (q, kv) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let tensor = |name: &str, shape: &[usize], bytes: &mut usize| -> Result<Tensor> {
            let tensor = checkpoint.weight(name, shape)?;
            *bytes += tensor.size();
            Ok(tensor)
        };
        let get =
            |name: &str, shape: &[usize], bytes: &mut usize| backend.weight(&tensor(name, shape, bytes)?);
        let mut layers = Vec::with_capacity(config.layers);
        let mut layer_bytes = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let mut bytes = 0;
            let mut norm =
                |name: &str| get(&format!("model.layers.{index}.{name}.weight"), &[hidden], &mut bytes);
            let (input_norm, post_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
            let mut parts = |name: &str, outputs: usize, inputs: usize, bias: bool| {
                let name = format!("model.layers.{index}.{name}");
                let weight = tensor(&format!("{name}.weight"), &[outputs, inputs], &mut bytes)?;
                let bias =
                    bias.then(|| tensor(&format!("{name}.bias"), &[outputs], &mut bytes)).transpose()?;
                Ok::<_, Error>((weight, bias))
            };
            let mut of_heads = |name: &str, outputs: usize, inputs: usize, side: HeadSide| {
                let (weight, bias) = parts(name, outputs, inputs, config.attention_bias)?;
                // What all heads together add to the residual stream has no heads.
                let of_bias = |bias| match side {
                    HeadSide::Outputs => backend.head_weight(&bias, heads, side),
                    HeadSide::Inputs => backend.weight(&bias),
                };
                let weight = backend.head_weight(&weight, heads, side)?;
                Ok::<_, Error>(Linear { weight, bias: bias.map(of_bias).transpose()?, fp8_bound: None })
            };
            let qkv = [
                of_heads("self_attn.q_proj", q, hidden, HeadSide::Outputs)?,
                of_heads("self_attn.k_proj", kv, hidden, HeadSide::Outputs)?,
                of_heads("self_attn.v_proj", kv, hidden, HeadSide::Outputs)?,
            ];
            let output = of_heads("self_attn.o_proj", hidden, q, HeadSide::Inputs)?;
            let mut linear = |name: &str, outputs: usize, inputs: usize| {
                let (weight, bias) = parts(name, outputs, inputs, config.mlp_bias)?;
                let bias = bias.map(|bias| backend.weight(&bias)).transpose()?;
                let fp8_bound = weight.fp8().map(|fp8| fp8.bound);
                Ok::<_, Error>(Linear { weight: backend.weight(&weight)?, bias, fp8_bound })
            };
            let gate_up = [
                linear("mlp.gate_proj", intermediate, hidden)?,
                linear("mlp.up_proj", intermediate, hidden)?,
            ];
            if gate_up[0].fp8_bound != gate_up[1].fp8_bound {
                let reason = format!("gate_proj and up_proj of layer {index} must both be e4m3, or neither");
                return Err(Error::argument("model", reason));
            }
            layers.push(Layer {
                input_norm,
                qkv,
                output,
                post_norm,
                gate_up,
                down: linear("mlp.down_proj", hidden, intermediate)?,
            });
            layer_bytes.push(bytes);
        }
        let (mut embedding_bytes, mut head_bytes) = (0, 0);
        let embedding = get("model.embed_tokens.weight", &[config.vocab, hidden], &mut embedding_bytes)?;
        let norm = get("model.norm.weight", &[hidden], &mut head_bytes)?;
        let head = match config.tied {
            true => None,
            false => Some(get("lm_head.weight", &[config.vocab, hidden], &mut head_bytes)?),
        };
        if head.is_none() {
            head_bytes += embedding_bytes;
        }
        Ok(Llama {
            angles: Angles::new(&config, context),
            embedding_row_bytes: embedding_bytes / config.vocab,
            config,
            backend,
            heads,
            embedding,
            layers,
            norm,
            head,
            layer_bytes,
            head_bytes,
        })
    }

    /// The model's shape and settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The backend that holds the weights.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Replaces the mask of every layer.
    pub fn set_mask(&mut self, mask: Mask) {
        self.config.masks.fill(mask);
    }

    /// Bytes of weights that a pass over `layers` streams, once for all its rows.
    pub fn bytes(&self, layers: Range<usize>) -> usize {
        let embedding = if layers.start == 0 { self.embedding_row_bytes } else { 0 };
        embedding + self.layer_bytes[layers].iter().sum::<usize>()
    }

    /// Bytes of weights that the final norm and the head stream.
    pub fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// Bytes that one position takes in the KV cache, in all layers.
    pub fn kv_bytes(&self) -> usize {
        self.backend.page_bytes(self.heads, self.config.layers) / self.backend.page_size()
    }

    /// Room for the keys and values that `cache` keeps book of.
    pub fn kv(&self, cache: &Cache) -> Result<B::Kv> {
        self.backend.kv(self.heads, self.config.layers, cache)
    }

    /// Room for rounds that stay on the device, if the backend has such.
    pub(crate) fn round(&self, sizes: RoundSizes, kv: &B::Kv) -> Result<Option<B::Round>> {
        self.backend.round(sizes, &self.angles, kv)
    }

    /// Buffers for at most `rows` rows in [`Llama::forward`] and `logit_rows` in [`Llama::head`].
    pub fn work(&self, rows: usize, logit_rows: usize) -> Result<Work<B>> {
        let config = &self.config;
        let buffer = |width| self.backend.buffer(rows, width);
        let is_fp8 = |layer: &Layer<_>| layer.gate_up[0].fp8_bound.or(layer.down.fp8_bound).is_some();
        let quantised = self.layers.iter().any(is_fp8);
        let quantised =
            quantised.then(|| self.backend.quantised(rows, config.hidden.max(config.intermediate)));
        let activations = Activations {
            hidden: buffer(config.hidden)?,
            normed: self.backend.buffer(rows.max(logit_rows), config.hidden)?,
            qkv: buffer(self.heads.qkv())?,
            attended: buffer(self.heads.heads * self.heads.padded)?,
            gated: buffer(config.intermediate)?,
            quantised: quantised.transpose()?,
        };
        Ok(Work {
            activations,
            logits: self.backend.logits(logit_rows, config.vocab)?,
            descriptors: self.backend.rows(rows, self.heads, &self.angles)?,
            rows,
            logit_rows,
        })
    }

    /// Runs `layers` over decode rows: plain steps, drafts, verifications. From layer 0 the residual stream begins
    /// with the tokens' embeddings; from a later one it goes on from what `work.hidden` holds. The result is in
    /// `work.hidden`, before any norm, one row for each of `rows`. Keys and values go to the pages of `cache`.
    ///
    /// # Errors
    /// [`Error::Argument`] for more rows than `work` holds, layers that do not exist, a token outside the
    /// vocabulary, or a position that its sequence has no page for. Nothing is computed then.
    pub fn forward(
        &self,
        layers: Range<usize>,
        rows: &[Row],
        kv: &mut B::Kv,
        cache: &Cache,
        work: &mut Work<B>,
    ) -> Result<()> {
        self.check(&layers, rows, cache, work)?;
        let Work { activations, descriptors, .. } = work;
        self.backend.pass(|| {
            let class = RowClass::Decode;
            self.backend.set_rows(descriptors, rows, class, kv, cache)?;
            Pass { llama: self, class, rows: descriptors, count: rows.len(), kv, cache, activations }
                .run(layers)
        })
    }

    /// Computes the keys and values of prompt rows in every layer. What the last layer makes of them is not
    /// computed, since no prompt row's logits are wanted: the last token of a prompt is a decode row.
    /// `work.hidden` is left undefined.
    ///
    /// A prompt's keys and values have the same bits however it is cut into calls.
    ///
    /// # Errors
    /// As [`Llama::forward`].
    pub fn prefill(&self, rows: &[Row], kv: &mut B::Kv, cache: &Cache, work: &mut Work<B>) -> Result<()> {
        let _range = range::range("prompt");
        let last = self.layers.len() - 1;
        self.check(&(0..last + 1), rows, cache, work)?;
        let Work { activations, descriptors, .. } = work;
        let class = RowClass::Prompt;
        self.backend.set_rows(descriptors, rows, class, kv, cache)?;
        let mut pass =
            Pass { llama: self, class, rows: descriptors, count: rows.len(), kv, cache, activations };
        pass.run(0..last)?;
        if last == 0 {
            pass.embed()?;
        }
        pass.keys_values(last, Outputs::KeysValues)
    }

    /// Runs `layers` over decode rows that are on the device already, as [`Llama::forward`] does.
    pub(crate) fn forward_rows(
        &self,
        layers: Range<usize>,
        rows: &B::Rows,
        count: usize,
        kv: &mut B::Kv,
        cache: &Cache,
        work: &mut Work<B>,
    ) -> Result<()> {
        let (class, activations) = (RowClass::Decode, &mut work.activations);
        Pass { llama: self, class, rows, count, kv, cache, activations }.run(layers)
    }

    /// Hands rows `from..from + rows` of the residual stream, to be normalised, and the head to `work`.
    pub(crate) fn with_head<R>(
        &self,
        from: usize,
        rows: usize,
        work: &mut Work<B>,
        read: impl FnOnce(Input<B>, &B::Weight) -> Result<R>,
    ) -> Result<R> {
        let (input, weight) = self.head_input(from, rows, &mut work.activations);
        read(input, weight)
    }

    /// Rows of the residual stream, to be normalised, and the head.
    fn head_input<'a>(
        &'a self,
        from: usize,
        rows: usize,
        activations: &'a mut Activations<B>,
    ) -> (Input<'a, B>, &'a B::Weight) {
        let Activations { hidden, normed, .. } = activations;
        let norm = Norm { weight: &self.norm, eps: self.config.rms_norm_eps, scratch: normed };
        let input = Input { x: hidden, from, rows, norm: Some(norm), live: None };
        (input, self.head.as_ref().unwrap_or(&self.embedding))
    }

    /// The logits of rows `from..from + rows` of the residual stream: final norm and head.
    /// `[rows, vocab]`, in f32.
    ///
    /// # Errors
    /// [`Error::Argument`] for more rows than `work` holds.
    pub fn head<'w>(&self, from: usize, rows: usize, work: &'w mut Work<B>) -> Result<&'w [f32]> {
        if rows > work.logit_rows || from + rows > work.rows {
            return Err(Error::argument(
                "rows",
                format!("{rows} rows of logits from row {from} are more than the buffers hold"),
            ));
        }
        let (input, weight) = self.head_input(from, rows, &mut work.activations);
        self.backend.pass(|| self.backend.head(input, weight, &mut work.logits))?;
        self.backend.read(&mut work.logits, rows)
    }

    fn check(&self, layers: &Range<usize>, rows: &[Row], cache: &Cache, work: &Work<B>) -> Result<()> {
        if rows.len() > work.rows {
            return Err(Error::argument(
                "rows",
                format!("{} rows, the buffers hold {}", rows.len(), work.rows),
            ));
        }
        if layers.start >= layers.end || layers.end > self.layers.len() {
            return Err(Error::argument("layers", format!("{layers:?} of {} layers", self.layers.len())));
        }
        for row in rows {
            if row.token as usize >= self.config.vocab {
                return Err(Error::argument(
                    "token",
                    format!("id {} is outside the vocabulary of {}", row.token, self.config.vocab),
                ));
            }
            if row.position >= cache.len(row.sequence)? {
                return Err(Error::argument(
                    "position",
                    format!("{} of sequence {} was not reserved in the cache", row.position, row.sequence),
                ));
            }
        }
        Ok(())
    }
}

/// Rows of one class on their way through the layers.
struct Pass<'p, B: Backend> {
    llama: &'p Llama<B>,
    class: RowClass,
    rows: &'p B::Rows,
    count: usize,
    kv: &'p mut B::Kv,
    cache: &'p Cache,
    activations: &'p mut Activations<B>,
}

/// What is wanted of a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outputs {
    /// Its residual stream.
    Hidden,
    /// Its keys and values alone: queries are not computed.
    KeysValues,
}

impl<B: Backend> Pass<'_, B> {
    /// Through `layers`; from layer 0 the residual stream begins with the tokens' embeddings.
    fn run(&mut self, layers: Range<usize>) -> Result<()> {
        for index in layers {
            let _range = range::layer(index);
            if index == 0 {
                self.embed()?;
            }
            self.keys_values(index, Outputs::Hidden)?;
            self.hidden(index)?;
        }
        Ok(())
    }

    fn embed(&mut self) -> Result<()> {
        self.llama.backend.embed(&self.llama.embedding, self.rows, &mut self.activations.hidden)
    }

    /// First half of layer `index`: writes the rows' keys and values to the cache and, where the residual stream is
    /// wanted, leaves their queries in `qkv`.
    fn keys_values(&mut self, index: usize, outputs: Outputs) -> Result<()> {
        let (b, layer) = (&self.llama.backend, &self.llama.layers[index]);
        let Activations { hidden, normed, qkv, .. } = &mut *self.activations;
        let Heads { heads, kv_heads, padded, .. } = self.llama.heads;
        let [q, k, v] = &layer.qkv;
        let parts = [q.at(0), k.at(heads * padded), v.at((heads + kv_heads) * padded)];
        let wanted = if outputs == Outputs::Hidden { &parts[..] } else { &parts[1..] };
        let norm = Norm { weight: &layer.input_norm, eps: self.llama.config.rms_norm_eps, scratch: normed };
        let input = Input { x: hidden, from: 0, rows: self.count, norm: Some(norm), live: Some(self.rows) };
        b.linear(input, wanted, qkv, self.llama.heads.qkv(), Epilogue::Store, self.class)?;
        b.rope_append(qkv, self.rows, self.kv, index, self.cache)
    }

    /// Second half: attention and the feed-forward block, into the residual stream.
    fn hidden(&mut self, index: usize) -> Result<()> {
        let (b, rows, layer) = (&self.llama.backend, self.count, &self.llama.layers[index]);
        let Activations { hidden, normed, qkv, attended, gated, quantised } = &mut *self.activations;
        let Config { hidden: width, intermediate, rms_norm_eps: eps, .. } = self.llama.config;
        let live = Some(self.rows);
        let plain = |x| Input { x, from: 0, rows, norm: None, live };
        let mask = &self.llama.config.masks[index];
        b.attention(qkv, self.rows, mask, self.kv, index, self.cache, attended)?;
        b.linear(plain(attended), &[layer.output.at(0)], hidden, width, Epilogue::Add, self.class)?;
        let norm = Norm { weight: &layer.post_norm, eps, scratch: normed };
        let input = Input { x: hidden, from: 0, rows, norm: Some(norm), live };
        let gate_up = [layer.gate_up[0].at(0), layer.gate_up[1].at(0)];
        match (layer.gate_up[0].fp8_bound, &mut *quantised) {
            (Some(bound), Some(q)) => {
                b.quantise(input, width, bound, q)?;
                b.linear_fp8(q, rows, &gate_up, gated, intermediate, Epilogue::SwiGlu, self.class)?;
            }
            _ => b.linear(input, &gate_up, gated, intermediate, Epilogue::SwiGlu, self.class)?,
        }
        let down = [layer.down.at(0)];
        match (layer.down.fp8_bound, quantised) {
            (Some(bound), Some(q)) => {
                b.quantise(plain(gated), intermediate, bound, q)?;
                b.linear_fp8(q, rows, &down, hidden, width, Epilogue::Add, self.class)
            }
            _ => b.linear(plain(gated), &down, hidden, width, Epilogue::Add, self.class),
        }
    }
}
