//! Writes GGUF files. It checks nothing, so that tests can write wrong ones too.

use crate::gguf::GgmlType;

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "named as the format's types")]
pub enum Entry {
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    I32(i32),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    Bools(Vec<bool>),
    /// A type's number and the value's bytes, whatever they are.
    Raw(u32, Vec<u8>),
}

/// A GGUF file in the making. Entries and tensors keep their order.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    /// 2 or 3 in good files.
    pub version: u32,
    /// Of the tensor data, bytes; add `general.alignment` where it is not 32.
    pub alignment: u64,
    /// Keys and values.
    pub metadata: Vec<(String, Entry)>,
    /// The tensors, each with its own data.
    pub tensors: Vec<WriteTensor>,
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct WriteTensor {
    /// Its name.
    pub name: String,
    /// Its shape, fastest dimension first.
    pub dims: Vec<u64>,
    /// Its type.
    pub ggml_type: GgmlType,
    /// Its blocks.
    pub data: Vec<u8>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter { version: 3, alignment: 32, metadata: Vec::new(), tensors: Vec::new() }
    }
}

impl GgufWriter {
    /// Adds an entry, or replaces the one of that key.
    pub fn set(&mut self, key: &str, entry: Entry) -> &mut Self {
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = entry,
            None => self.metadata.push((key.to_owned(), entry)),
        }
        self
    }

    /// Takes an entry out.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    /// Adds a tensor.
    pub fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        ggml_type: GgmlType,
        data: Vec<u8>,
    ) -> &mut Self {
        let (name, dims) = (name.to_owned(), dims.to_vec());
        self.tensors.push(WriteTensor { name, dims, ggml_type, data });
        self
    }

    /// The tensor of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn tensor_mut(&mut self, name: &str) -> &mut WriteTensor {
        let found = self.tensors.iter_mut().find(|t| t.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Takes a tensor out.
    pub fn remove_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|t| t.name != name);
        self
    }

    /// The whole file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.head_bytes();
        pad(&mut out, self.alignment);
        let start = out.len();
        for tensor in &self.tensors {
            debug_assert!((out.len() - start).is_multiple_of(self.alignment as usize));
            out.extend_from_slice(&tensor.data);
            pad(&mut out, self.alignment);
        }
        out
    }

    /// The file up to its tensor data: header, metadata and tensor descriptions.
    pub fn head_bytes(&self) -> Vec<u8> {
        let mut out = Vec::from(*b"GGUF");
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, entry) in &self.metadata {
            put_str(&mut out, key);
            put_entry(&mut out, entry);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_str(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                out.extend(dim.to_le_bytes());
            }
            out.extend(tensor.ggml_type.number().to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.data.len() as u64).next_multiple_of(self.alignment);
        }
        out
    }

    /// The same model in `parts` files of about as many tensors each, as llama.cpp's
    /// `gguf-split` writes them: metadata in the first, `split.*` in all.
    pub fn split(&self, parts: u16) -> Vec<GgufWriter> {
        let per_part = self.tensors.len().div_ceil(parts.into()).max(1);
        let file = |no: u16| {
            let mut file = GgufWriter { metadata: Vec::new(), tensors: Vec::new(), ..*self };
            if no == 0 {
                file.metadata.clone_from(&self.metadata);
            } else if self.alignment != 32 {
                file.set("general.alignment", Entry::U32(self.alignment as u32));
            }
            file.set("split.no", Entry::U16(no));
            file.set("split.count", Entry::U16(parts));
            file.set("split.tensors.count", Entry::I32(self.tensors.len() as i32));
            let chunk = self.tensors.chunks(per_part).nth(no.into());
            file.tensors = chunk.unwrap_or(&[]).to_vec();
            file
        };
        (0..parts).map(file).collect()
    }
}

fn pad(out: &mut Vec<u8>, alignment: u64) {
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let mut put = |number: u32, bytes: &[u8]| {
        out.extend(number.to_le_bytes());
        out.extend(bytes);
    };
    match entry {
        Entry::U8(v) => put(0, &[*v]),
        Entry::U16(v) => put(2, &v.to_le_bytes()),
        Entry::U32(v) => put(4, &v.to_le_bytes()),
        Entry::I32(v) => put(5, &v.to_le_bytes()),
        Entry::F32(v) => put(6, &v.to_le_bytes()),
        Entry::Bool(v) => put(7, &[u8::from(*v)]),
        Entry::U64(v) => put(10, &v.to_le_bytes()),
        Entry::I64(v) => put(11, &v.to_le_bytes()),
        Entry::F64(v) => put(12, &v.to_le_bytes()),
        Entry::Raw(number, bytes) => put(*number, bytes),
        Entry::Str(text) => {
            put(8, &[]);
            put_str(out, text);
        }
        Entry::Strs(texts) => {
            put(9, &array_head(8, texts.len()));
            texts.iter().for_each(|text| put_str(out, text));
        }
        Entry::F32s(v) => {
            put(9, &array_head(6, v.len()));
            out.extend(v.iter().flat_map(|x| x.to_le_bytes()));
        }
        Entry::I32s(v) => {
            put(9, &array_head(5, v.len()));
            out.extend(v.iter().flat_map(|x| x.to_le_bytes()));
        }
        Entry::Bools(v) => {
            put(9, &array_head(7, v.len()));
            out.extend(v.iter().map(|x| u8::from(*x)));
        }
    }
}

fn array_head(number: u32, len: usize) -> Vec<u8> {
    let mut head = Vec::from(number.to_le_bytes());
    head.extend((len as u64).to_le_bytes());
    head
}
