//! Paged decode attention on memory and a stream of cudarc's.
//!
//!     cargo run --release --no-default-features --features cuda --example cudarc
use half::bf16;
use warploom::{
    driver::interop::{
        self,
        cudarc::driver::{CudaContext, sys},
    },
    kernels::{AttentionDecode, AttentionDecodeArgs, Dtype, PageLayout, PageTable, Rows, RowsMut},
    mask::Mask,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Without a driver cudarc panics.
    // SAFETY: loads the library.
    if !unsafe { sys::is_culib_present() } {
        println!("there is no NVIDIA driver: nothing to show");
        return Ok(());
    }
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let driver = interop::device(&context)?;
    let on = interop::stream(&driver, &stream)?;
    let kernel = AttentionDecode::load(&driver)?;

    // Two sequences of 20 and 37 keys in pages of 16, four query heads over two of keys.
    let (heads, head_dim, page) = (4, 64, 16);
    let layout = PageLayout::heads_first(6, page, 2, head_dim);
    let numbers = |count: usize| -> Vec<bf16> {
        (0..count).map(|i| bf16::from_f32((i * 37 % 101) as f32 / 50.0 - 1.0)).collect()
    };
    let q = stream.clone_htod(&to_bits(&numbers(2 * heads * head_dim)))?;
    let k = stream.clone_htod(&to_bits(&numbers(6 * 2 * page * head_dim)))?;
    let v = stream.clone_htod(&to_bits(&numbers(6 * 2 * page * head_dim)))?;
    let mut out = stream.alloc_zeros::<u16>(2 * heads * head_dim)?;
    let (table, lengths, offsets) = (
        stream.clone_htod(&[4, 1, -1, 0, 5, 2])?,
        stream.clone_htod(&[20, 37])?,
        stream.clone_htod(&[0, 1, 2])?,
    );
    let mut scratch = stream.alloc_zeros::<u8>(1 << 20)?;
    {
        let q = interop::read(&q, &stream);
        let k = interop::read(&k, &stream);
        let v = interop::read(&v, &stream);
        let table = interop::read(&table, &stream);
        let lengths = interop::read(&lengths, &stream);
        let offsets = interop::read(&offsets, &stream);
        let mut out = interop::write(&mut out, &stream);
        let mut scratch = interop::write(&mut scratch, &stream);
        let args = AttentionDecodeArgs {
            dtype: Dtype::Bf16,
            tokens: 2,
            sequences: 2,
            heads,
            q: Rows { view: q.view(), stride: heads * head_dim },
            out: RowsMut { view: out.view_mut(), stride: heads * head_dim },
            lse: None,
            layout,
            k: k.view(),
            v: v.view(),
            table: PageTable { view: table.view(), sequences: 2, stride: 3 },
            slots: None,
            lengths: lengths.view(),
            offsets: offsets.view(),
            positions: None,
            max_rows: 1,
            max_keys: 48,
            mask: Mask::CAUSAL,
            documents: None,
            tree: None,
            scale: 0.125,
            softcap: 0.0,
            sinks: None,
        };
        kernel.launch(&on, &args, scratch.view_mut())?;
    }
    let out = stream.clone_dtoh(&out)?;
    println!(
        "{}: {:?} …",
        driver.properties().name,
        out[..4].iter().map(|x| bf16::from_bits(*x)).collect::<Vec<_>>()
    );
    Ok(())
}

fn to_bits(numbers: &[bf16]) -> Vec<u16> {
    numbers.iter().map(|x| x.to_bits()).collect()
}
