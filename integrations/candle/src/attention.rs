//! Attention over contiguous keys and values, and over pages.

use bytemuck::Pod;
use candle_core::{
    CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, WithDType, backend::BackendStorage,
    bail,
};
use half::{bf16, f16};
use warploom::{
    driver::{Stream, View, ViewMut},
    kernels::{AttentionDecodeArgs, AttentionPrefillArgs, PageLayout, PageTable, Rows, RowsMut},
    mask::Mask,
};

use crate::{
    device::{self, Kernels, Simulated, failed},
    layout::{Argument, Span},
};

const OP: &str = "attention";
const PAGED: &str = "paged_attention";

/// Up to so many rows of a sequence go through the kernel for decoding, which divides a sequence's keys among the GPU's
/// multiprocessors; more through the one for prompts. The two sum in different orders.
pub const DECODE_ROWS: usize = 64;

/// What is computed of queries, keys and values: softmax(scale · q kᵀ, softened and masked) · v.
///
/// It is the operation behind [`attention`], too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Factor of q · k.
    pub scale: f32,
    /// Which keys a row sees. It goes by positions: those of a sequence's rows are its last ones, so the last row has the last key.
    pub mask: Mask,
    /// Scores become softcap · tanh(score / softcap); 0 leaves them.
    pub softcap: f32,
}

impl Attention {
    /// Causal, with the scale 1/√head_dim and no softcap.
    pub fn causal(head_dim: usize) -> Self {
        Attention { scale: 1.0 / (head_dim as f32).sqrt(), mask: Mask::CAUSAL, softcap: 0.0 }
    }
}

/// Attention of `q` `(batch, rows, heads, head_dim)` over `k` and `v` `(batch, keys, kv_heads, head_dim)`, all bf16 or f16, to
/// `(batch, rows, heads, head_dim)`. That is the order of candle-flash-attn.
///
/// heads is a multiple of kv_heads (GQA: query head h has the keys of h / (heads / kv_heads)), head_dim a multiple of 8 up to 256, and
/// rows at most keys: the last row has the last key, as when a prompt follows a cache.
///
/// Strides are used as they are: `k` and `v` may be transposed from `(batch, kv_heads, keys, head_dim)` or narrowed from a longer cache, as long as
/// both have the same strides. In `q` the heads of a row lie side by side. There is no gradient.
///
/// # Errors
/// Types, shapes and layouts that do not fit, options out of range, tensors on different devices, and what the device says.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<Tensor> {
    q.apply_op3(k, v, *options)
}

/// Which pages of a cache each sequence has.
#[derive(Clone, Debug)]
pub struct Pages {
    /// `(sequences, pages)` in u32 or i32: a sequence's page ids in the order of its positions. What lies behind its last key may
    /// be anything.
    pub table: Tensor,
    /// `(sequences)` in u32 or i32: keys of each sequence, those of its rows included.
    pub lengths: Tensor,
    /// At least the largest of `lengths`, which the host does not read. The nearer, the less memory a launch takes.
    pub max_keys: usize,
}

/// Attention of `q` `(sequences, rows, heads, head_dim)` over a cache in pages: `k` and `v` are
/// `(pages, page_size, kv_heads, head_dim)`, the page_size a multiple of 8; else as [`attention`]. A cache of
/// `(pages, kv_heads, page_size, head_dim)` is passed transposed.
///
/// The rows of a sequence are its last keys, which have been written to its pages before. What the device's memory says of the
/// sequences is not looked at by the host: a row that sees a key whose page is not in the cache is NaN, as are all rows of a
/// sequence whose length is over `max_keys`; a row before a sequence's first key is 0.
///
/// # Errors
/// As [`attention`].
pub fn paged_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    pages: &Pages,
    options: &Attention,
) -> Result<Tensor> {
    q.apply_op3(k, v, Paged { options: *options, pages: pages.clone() })
}

/// [`paged_attention`] as an operation.
struct Paged {
    options: Attention,
    pages: Pages,
}

/// A call of which the arguments have been checked.
struct Call<'p> {
    op: &'static str,
    options: Attention,
    dtype: DType,
    sequences: usize,
    rows: usize,
    heads: usize,
    layout: PageLayout,
    max_keys: usize,
    q_stride: usize,
    q: Span,
    k: Span,
    v: Span,
    /// None: keys are contiguous, a page for each sequence.
    pages: Option<&'p Pages>,
    /// Entries of a sequence in the page table.
    table_width: usize,
}

/// Memory of a call: i32 but for q, k, v and out.
struct Memory<'b> {
    q: View<'b>,
    k: View<'b>,
    v: View<'b>,
    out: ViewMut<'b>,
    table: View<'b>,
    lengths: View<'b>,
    offsets: View<'b>,
    scratch: ViewMut<'b>,
}

type Given<'a> = (&'a Layout, DType);

/// What contiguous and paged attention check alike. `of_keys` are the dimensions of k and v, the second and the third of which are positions
/// and kv heads.
fn check<'p>(
    op: &'static str,
    options: Attention,
    q: Given,
    k: Given,
    v: Given,
    of_keys: &str,
) -> Result<Call<'p>> {
    let argument = |name, (layout, dtype)| Argument { op, name, layout, dtype };
    let (q, k, v) = (argument("q", q), argument("k", k), argument("v", v));
    q.check_type(&[DType::BF16, DType::F16])?;
    k.check_same_type(&q)?;
    v.check_same_type(&q)?;
    let [sequences, rows, heads, head_dim] = q.dims_as("(batch, rows, heads, head_dim)")?;
    let [pages, positions, kv_heads, key_dim] = k.dims_as(of_keys)?;
    if v.dims() != k.dims() {
        return v.refuse(format!("has the shape {:?} and k {:?}; they must be equal", v.dims(), k.dims()));
    }
    if key_dim != head_dim {
        return k.refuse(format!("has heads of {key_dim} and q of {head_dim}"));
    }
    if !heads.is_multiple_of(kv_heads) {
        return q.refuse(format!("has {heads} heads; supported are multiples of k's, {kv_heads}"));
    }
    if !head_dim.is_multiple_of(8) || head_dim > 256 {
        return q.refuse(format!("has heads of {head_dim}; supported are multiples of 8 up to 256"));
    }
    let q_stride = q.rows(2)?;
    if !q_stride.is_multiple_of(8) {
        return q.refuse(format!(
            "has rows {q_stride} elements apart; supported are multiples of 8: call .contiguous()"
        ));
    }
    k.check_vectors()?;
    v.check_vectors()?;
    let layout = PageLayout {
        pages,
        page_size: positions,
        kv_heads,
        head_dim,
        page_stride: k.stride(0),
        head_stride: k.stride(2),
        slot_stride: k.stride(1),
    };
    if (0..3).any(|dimension| v.stride(dimension) != k.stride(dimension)) {
        return v.refuse(format!(
            "has strides {:?} and k {:?}; they must be equal: call .contiguous() on both",
            v.layout.stride(),
            k.layout.stride()
        ));
    }
    Ok(Call {
        op,
        options,
        dtype: q.dtype,
        sequences,
        rows,
        heads,
        layout,
        max_keys: positions,
        q_stride,
        q: q.span()?,
        k: k.span()?,
        v: v.span()?,
        pages: None,
        table_width: 1,
    })
}

impl Attention {
    fn check(&self, q: Given, k: Given, v: Given) -> Result<Call<'static>> {
        let mut call = check(OP, *self, q, k, v, "(batch, keys, kv_heads, head_dim)")?;
        let (batch, keys) = (call.layout.pages, call.layout.page_size);
        if batch != call.sequences {
            bail!("{OP}: q has a batch of {} and k of {batch}", call.sequences);
        }
        if call.rows > keys {
            bail!(
                "{OP}: q has {} rows over {keys} keys; the last row has the last key, so rows are keys at most",
                call.rows
            );
        }
        // Pages hold a multiple of 8 positions; of these, the last are none's.
        call.layout.page_size = keys.next_multiple_of(8);
        Ok(call)
    }
}

impl Paged {
    fn check(&self, q: Given, k: Given, v: Given) -> Result<Call<'_>> {
        let Pages { table, lengths, max_keys } = &self.pages;
        let mut call = check(PAGED, self.options, q, k, v, "(pages, page_size, kv_heads, head_dim)")?;
        let (table, lengths) = (Argument::of(PAGED, "table", table), Argument::of(PAGED, "lengths", lengths));
        let [sequences, width] = table.dims_as("(sequences, pages)")?;
        let [of_lengths] = lengths.dims_as("(sequences)")?;
        for (numbers, count) in [(table, sequences), (lengths, of_lengths)] {
            numbers.check_type(&[DType::U32, DType::I32])?;
            if count != call.sequences {
                return numbers.refuse(format!("is of {count} sequences and q of {}", call.sequences));
            }
            if !numbers.layout.is_contiguous() {
                return numbers.refuse("is not contiguous: call .contiguous()".into());
            }
        }
        let most = width.saturating_mul(call.layout.page_size);
        if *max_keys == 0 || *max_keys > most {
            bail!(
                "{PAGED}: max_keys is {max_keys}; {width} pages of {} hold 1 to {most}",
                call.layout.page_size
            );
        }
        (call.pages, call.table_width, call.max_keys) = (Some(&self.pages), width, *max_keys);
        Ok(call)
    }
}

impl Call<'_> {
    fn tokens(&self) -> usize {
        self.sequences * self.rows
    }

    fn width(&self) -> usize {
        self.heads * self.layout.head_dim
    }

    fn is_decode(&self) -> bool {
        self.rows <= DECODE_ROWS
    }

    /// Bytes of scratch that the launch needs.
    fn scratch_bytes(&self, kernels: &Kernels) -> usize {
        let Call { sequences, rows, heads, layout, max_keys, .. } = self;
        match self.is_decode() {
            true => kernels.decode.most_scratch(*sequences, *rows, *heads, layout, *max_keys),
            false => 0,
        }
    }

    /// The numbers that say where rows and contiguous keys are: offsets, and without pages, lengths and page table.
    fn numbers(&self) -> Vec<i32> {
        // Larger ones are refused at the launch.
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let mut numbers: Vec<i32> =
            (0..=self.sequences).map(|s| number(s.saturating_mul(self.rows))).collect();
        if self.pages.is_none() {
            numbers.extend(std::iter::repeat_n(number(self.max_keys), self.sequences));
            numbers.extend((0..self.sequences).map(number));
        }
        numbers
    }

    /// Offsets, lengths and table within what [`Call::numbers`] has.
    fn parts<'b>(&self, numbers: View<'b>) -> (View<'b>, View<'b>, View<'b>) {
        let part = |from: usize, count: usize| numbers.slice(4 * from..4 * (from + count));
        let sequences = self.sequences;
        (part(0, sequences + 1), part(sequences + 1, sequences), part(2 * sequences + 1, sequences))
    }

    fn launch(&self, kernels: &Kernels, stream: &Stream, memory: Memory) -> warploom::Result<()> {
        let &Call { sequences, rows, heads, layout, max_keys, ref options, .. } = self;
        let &Attention { scale, mask, softcap } = options;
        let Memory { q, k, v, mut out, table, lengths, offsets, scratch } = memory;
        if self.pages.is_some() {
            // What the kernels leave as it is, for a length that is out of range, is NaN in both types.
            stream.fill(&mut out, 0xff)?;
        }
        let dtype = device::dtype(self.dtype);
        let q = Rows { view: q, stride: self.q_stride };
        let out = RowsMut { view: out, stride: self.width() };
        let table = PageTable { view: table, sequences, stride: self.table_width };
        if self.is_decode() {
            let args = AttentionDecodeArgs {
                dtype,
                tokens: self.tokens(),
                sequences,
                heads,
                q,
                out,
                lse: None,
                layout,
                k,
                v,
                table,
                slots: None,
                lengths,
                offsets,
                positions: None,
                max_rows: rows,
                max_keys,
                mask,
                documents: None,
                tree: None,
                scale,
                softcap,
                sinks: None,
            };
            return kernels.decode.launch(stream, &args, scratch);
        }
        let args = AttentionPrefillArgs {
            dtype,
            tokens: self.tokens(),
            sequences,
            heads,
            q,
            out,
            lse: None,
            layout,
            k,
            v,
            table,
            slots: None,
            lengths,
            offsets,
            positions: None,
            max_rows: rows,
            max_keys,
            mask,
            documents: None,
            scale,
            softcap,
            sinks: None,
        };
        kernels.prefill.launch(stream, &args)
    }

    fn simulate<T: Pod + WithDType>(
        &self,
        q: &CpuStorage,
        k: &CpuStorage,
        v: &CpuStorage,
    ) -> Result<CpuStorage> {
        let on = Simulated::new(self.op)?;
        let given = |storage: &CpuStorage, span: Span| on.upload(storage.as_slice::<T>()?, span);
        let (q, k, v) = (given(q, self.q)?, given(k, self.k)?, given(v, self.v)?);
        let numbers = self.numbers();
        let numbers = on.upload(&numbers, Span { begin: 0, elements: numbers.len() })?;
        let pages = match self.pages {
            Some(pages) => {
                Some((self.upload(&on, "table", &pages.table)?, self.upload(&on, "lengths", &pages.lengths)?))
            }
            None => None,
        };
        let (offsets, lengths, table) = match &pages {
            Some((table, lengths)) => (numbers.view(), lengths.view(), table.view()),
            None => self.parts(numbers.view()),
        };
        let mut out = on.allocate(self.tokens() * self.width() * size_of::<T>())?;
        // As on a GPU, where memory has been something else before.
        on.stream.fill(&mut out.view_mut(), 0).map_err(failed(self.op))?;
        let mut scratch = on.allocate(self.scratch_bytes(on.kernels))?;
        let memory = Memory {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            out: out.view_mut(),
            table,
            lengths,
            offsets,
            scratch: scratch.view_mut(),
        };
        self.launch(on.kernels, &on.stream, memory).map_err(failed(self.op))?;
        on.download::<T>(&out)
    }

    /// Page table or lengths, which have been checked, for the simulator.
    fn upload(
        &self,
        on: &Simulated,
        name: &'static str,
        numbers: &Tensor,
    ) -> Result<warploom::driver::Buffer> {
        let (storage, _) = numbers.storage_and_layout();
        let argument = Argument::of(self.op, name, numbers);
        let Storage::Cpu(storage) = &*storage else {
            return argument.refuse("is on another device than q".into());
        };
        let span = argument.span()?;
        match numbers.dtype() {
            DType::I32 => on.upload(storage.as_slice::<i32>()?, span),
            _ => on.upload(storage.as_slice::<u32>()?, span),
        }
    }
}

/// Runs a call on the simulator.
fn simulate(
    call: Call,
    q: &CpuStorage,
    k: &CpuStorage,
    v: &CpuStorage,
    shape: &Shape,
) -> Result<(CpuStorage, Shape)> {
    let out = match call.dtype {
        DType::BF16 => call.simulate::<bf16>(q, k, v),
        _ => call.simulate::<f16>(q, k, v),
    };
    Ok((out?, shape.clone()))
}

macro_rules! custom_op {
    ($op:ty, $name:expr) => {
        impl CustomOp3 for $op {
            fn name(&self) -> &'static str {
                $name
            }

            fn cpu_fwd(
                &self,
                q: &CpuStorage,
                q_layout: &Layout,
                k: &CpuStorage,
                k_layout: &Layout,
                v: &CpuStorage,
                v_layout: &Layout,
            ) -> Result<(CpuStorage, Shape)> {
                let call = self.check((q_layout, q.dtype()), (k_layout, k.dtype()), (v_layout, v.dtype()))?;
                simulate(call, q, k, v, q_layout.shape())
            }

            #[cfg(feature = "cuda")]
            fn cuda_fwd(
                &self,
                q: &candle_core::CudaStorage,
                q_layout: &Layout,
                k: &candle_core::CudaStorage,
                k_layout: &Layout,
                v: &candle_core::CudaStorage,
                v_layout: &Layout,
            ) -> Result<(candle_core::CudaStorage, Shape)> {
                let call = self.check((q_layout, q.dtype()), (k_layout, k.dtype()), (v_layout, v.dtype()))?;
                cuda::run(call, q, k, v, q_layout.shape())
            }
        }
    };
}
custom_op!(Attention, OP);
custom_op!(Paged, PAGED);

#[cfg(feature = "cuda")]
mod cuda {
    use std::ops::Range;

    use candle_core::{
        CudaStorage, DType, Result, Shape, Storage, Tensor,
        backend::BackendStorage,
        cuda_backend::{
            CudaDType,
            cudarc::driver::{CudaStream, DeviceRepr},
        },
    };
    use half::{bf16, f16};
    use warploom::driver::interop::{self, Reading};

    use super::{Call, Memory};
    use crate::{
        device::{self, failed},
        layout::Argument,
    };

    /// Runs a call on a GPU.
    pub fn run(
        call: Call,
        q: &CudaStorage,
        k: &CudaStorage,
        v: &CudaStorage,
        shape: &Shape,
    ) -> Result<(CudaStorage, Shape)> {
        let out = match call.dtype {
            DType::BF16 => call.run::<bf16>(q, k, v),
            _ => call.run::<f16>(q, k, v),
        };
        Ok((out?, shape.clone()))
    }

    impl Call<'_> {
        fn run<T: CudaDType + DeviceRepr>(
            &self,
            q: &CudaStorage,
            k: &CudaStorage,
            v: &CudaStorage,
        ) -> Result<CudaStorage> {
            let device = q.device();
            let kernels = device::cuda::kernels(device).map_err(failed(self.op))?;
            let stream = device.cuda_stream();
            let on = interop::stream(&kernels.driver, &stream).map_err(failed(self.op))?;
            let numbers = device::cuda::numbers(device, self.numbers())?;
            let pages = self
                .pages
                .map(|pages| (pages.table.storage_and_layout(), pages.lengths.storage_and_layout()));
            // SAFETY: the kernel writes all of it, or it is filled before; scratch is written before it is read.
            let (mut out, mut scratch) = unsafe {
                let scratch = self.scratch_bytes(kernels).max(1);
                (device.alloc::<T>(self.tokens() * self.width())?, device.alloc::<u8>(scratch)?)
            };
            {
                let numbers = interop::read(&*numbers, &stream);
                let q = interop::read(q.as_cuda_slice::<T>()?, &stream);
                let k = interop::read(k.as_cuda_slice::<T>()?, &stream);
                let v = interop::read(v.as_cuda_slice::<T>()?, &stream);
                let mut out = interop::write(&mut out, &stream);
                let mut scratch = interop::write(&mut scratch, &stream);
                let of_pages = match (&pages, self.pages) {
                    (Some(((table, _), (lengths, _))), Some(pages)) => Some((
                        self.read("table", table, &pages.table, &stream)?,
                        self.read("lengths", lengths, &pages.lengths, &stream)?,
                    )),
                    _ => None,
                };
                let (offsets, lengths, table) = match &of_pages {
                    Some(((table, table_range), (lengths, lengths_range))) => (
                        numbers.view(),
                        lengths.view().slice(lengths_range.clone()),
                        table.view().slice(table_range.clone()),
                    ),
                    None => self.parts(numbers.view()),
                };
                let memory = Memory {
                    q: q.view().slice(self.q.bytes(self.dtype)),
                    k: k.view().slice(self.k.bytes(self.dtype)),
                    v: v.view().slice(self.v.bytes(self.dtype)),
                    out: out.view_mut(),
                    table,
                    lengths,
                    offsets,
                    scratch: scratch.view_mut(),
                };
                self.launch(kernels, &on, memory).map_err(failed(self.op))?;
            }
            Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
        }

        /// Page table or lengths, which have been checked, and their bytes.
        fn read<'a>(
            &self,
            name: &'static str,
            storage: &'a Storage,
            numbers: &Tensor,
            stream: &'a CudaStream,
        ) -> Result<(Reading<'a>, Range<usize>)> {
            let argument = Argument::of(self.op, name, numbers);
            let storage = match storage {
                Storage::Cuda(storage)
                    if storage.device().cuda_stream().context().ordinal() == stream.context().ordinal() =>
                {
                    storage
                }
                _ => return argument.refuse("is on another device than q".into()),
            };
            let reading = match numbers.dtype() {
                DType::I32 => interop::read(storage.as_cuda_slice::<i32>()?, stream),
                _ => interop::read(storage.as_cuda_slice::<u32>()?, stream),
            };
            Ok((reading, argument.span()?.bytes(numbers.dtype())))
        }
    }
}
