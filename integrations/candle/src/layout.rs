//! Which of candle's layouts the kernels take, and what to say of the others.

use candle_core::{DType, Layout, Result, Tensor, bail};

/// Where an argument's elements begin and how many there are up to its last one, within its storage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub begin: usize,
    pub elements: usize,
}

impl Span {
    /// In bytes.
    #[cfg(feature = "cuda")]
    pub fn bytes(&self, dtype: DType) -> std::ops::Range<usize> {
        let size = dtype.size_in_bytes();
        self.begin * size..(self.begin + self.elements) * size
    }

    pub fn range(&self) -> std::ops::Range<usize> {
        self.begin..self.begin + self.elements
    }
}

/// An argument of an operation, as errors name it.
#[derive(Clone, Copy)]
pub(crate) struct Argument<'a> {
    pub op: &'static str,
    pub name: &'static str,
    pub layout: &'a Layout,
    pub dtype: DType,
}

impl<'a> Argument<'a> {
    pub fn of(op: &'static str, name: &'static str, tensor: &'a Tensor) -> Self {
        Argument { op, name, layout: tensor.layout(), dtype: tensor.dtype() }
    }

    pub fn dims(&self) -> &'a [usize] {
        self.layout.dims()
    }

    /// Refuses it, for a reason that follows its name.
    pub fn refuse<T>(&self, reason: String) -> Result<T> {
        bail!("{}: {} {reason}", self.op, self.name)
    }

    pub fn check_type(&self, supported: &[DType]) -> Result<()> {
        if supported.contains(&self.dtype) {
            return Ok(());
        }
        let names: Vec<_> = supported.iter().map(DType::as_str).collect();
        self.refuse(format!("is {}; supported are {}", self.dtype.as_str(), names.join(" and ")))
    }

    pub fn check_same_type(&self, other: &Argument) -> Result<()> {
        if self.dtype == other.dtype {
            return Ok(());
        }
        let (own, others) = (self.dtype.as_str(), other.dtype.as_str());
        self.refuse(format!("is {own} and {} {others}; make them one type with to_dtype", other.name))
    }

    /// Its shape, which has to be as `wanted` says in words.
    pub fn dims_as<const N: usize>(&self, wanted: &str) -> Result<[usize; N]> {
        let Ok(dims) = <[usize; N]>::try_from(self.dims()) else {
            return self.refuse(format!("has the shape {:?}; expected is {wanted}", self.dims()));
        };
        self.check_not_empty()?;
        Ok(dims)
    }

    pub fn check_not_empty(&self) -> Result<()> {
        match self.dims().contains(&0) || self.dims().is_empty() {
            true => self.refuse(format!("is empty: it has the shape {:?}", self.dims())),
            false => Ok(()),
        }
    }

    /// Dimensions and strides, those of a single element left out: their strides are not used.
    fn used(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + Clone + 'a {
        let layout = self.layout;
        layout.dims().iter().copied().zip(layout.stride().iter().copied()).filter(|(count, _)| *count > 1)
    }

    /// The span of all its elements. Kernels read vectors of 16 bytes from where it begins.
    pub fn span(&self) -> Result<Span> {
        let begin = self.layout.start_offset();
        // Arrays of 4-byte numbers may begin anywhere.
        let every = if self.dtype.size_in_bytes() == 4 { 1 } else { 16 / self.dtype.size_in_bytes() };
        if !begin.is_multiple_of(every) {
            return self.refuse(format!(
                "begins at element {begin} of its storage; supported are multiples of {every}: call .force_contiguous()"
            ));
        }
        let last: usize = self.used().map(|(count, stride)| (count - 1) * stride).sum();
        Ok(Span { begin, elements: last + 1 })
    }

    /// Refuses strides, for a reason.
    fn refuse_strides<T>(&self, reason: &str) -> Result<T> {
        let (dims, strides) = (self.dims(), self.layout.stride());
        self.refuse(format!("of shape {dims:?} has strides {strides:?}; {reason}: call .contiguous()"))
    }

    /// The stride between rows that are made of the last `inner` dimensions, whose elements must lie side by side. Rows must
    /// be equally far apart, through all dimensions before those.
    pub fn rows(&self, inner: usize) -> Result<usize> {
        let (dims, strides) = (self.dims(), self.layout.stride());
        let outer = dims.len() - inner;
        let mut width = 1;
        for (count, stride) in dims[outer..].iter().zip(&strides[outer..]).rev() {
            if *count > 1 && *stride != width {
                return self.refuse_strides("the elements of a row have to lie side by side");
            }
            width *= count;
        }
        let mut row: Option<(usize, usize)> = None;
        for (count, stride) in
            dims[..outer].iter().zip(&strides[..outer]).rev().filter(|(count, _)| **count > 1)
        {
            let (rows, first) = row.unwrap_or((1, *stride));
            if *stride != rows * first {
                return self.refuse_strides("rows have to be equally far apart");
            }
            row = Some((rows * count, first));
        }
        match row {
            Some((_, stride)) if stride < width => self.refuse_strides("rows must not overlap"),
            Some((_, stride)) => Ok(stride),
            None => Ok(width),
        }
    }

    /// Refuses strides by which elements overlap, or vectors of eight elements would be torn apart.
    pub fn check_vectors(&self) -> Result<()> {
        let strides = self.layout.stride();
        if strides.last() != Some(&1) {
            return self.refuse_strides("elements of a head have to lie side by side");
        }
        let mut used: Vec<_> = self.used().collect();
        used.sort_by_key(|(_, stride)| *stride);
        let mut extent = 1;
        for (count, stride) in used {
            if stride != 1 && !stride.is_multiple_of(8) {
                return self.refuse_strides("supported are multiples of 8");
            }
            if stride < extent {
                return self.refuse_strides("elements must not overlap");
            }
            extent += (count - 1) * stride;
        }
        Ok(())
    }

    /// Stride of a dimension; of one with a single element what it would be behind the others.
    pub fn stride(&self, dimension: usize) -> usize {
        match self.dims()[dimension] {
            1 => 0,
            _ => self.layout.stride()[dimension],
        }
    }
}
