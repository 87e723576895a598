//! Reading a manifest from someone who may lie, and what its readers ask of it.

use litemap::LiteMap;
use thiserror::Error;

use crate::convert::{check_name, place_in_blob};
use crate::layout::{LAYOUT_VERSION, Layout};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::manifest::{Blob, MANIFEST_FORMAT, Manifest, Part, Role, Tensor};

/// Why bytes are no manifest that we would run.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// More than [`MANIFEST_BYTES_MAX`].
    #[error("the manifest has {got} bytes, expected at most {max}")]
    TooLarge {
        /// Its length.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// Not the JSON of a manifest.
    #[error("the manifest is not readable: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON of a manifest, but not the bytes that [`Manifest::to_bytes`] gives.
    #[error("the manifest is not in canonical form: from byte {at} it is written otherwise")]
    NotCanonical {
        /// The first byte that differs.
        at: usize,
    },
    /// Another format or layout version: one side is older.
    #[error("the manifest's {what} is {got}, this program reads {expected}: update the older one")]
    Version {
        /// Which of the two.
        what: &'static str,
        /// Its number there.
        got: u32,
        /// Its number here.
        expected: u32,
    },
    /// Something that does not fit the architecture and the shapes.
    #[error("the manifest is inconsistent: {place} has {what}")]
    Inconsistent {
        /// The whole, or which part.
        place: String,
        /// What, and what was expected.
        what: String,
    },
}

/// How a KV cache keeps its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Two bytes each: canonical-1.
    F16,
    /// Four bytes each: exact-f32.
    F32,
}

impl Manifest {
    /// Reads a manifest and checks all of it: what this returns, an engine can trust to be
    /// consistent (though not, of course, to hold good weights).
    ///
    /// # Errors
    /// A [`ManifestError`] for anything that [`crate::convert()`] could not have made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { got: bytes.len(), max: MANIFEST_BYTES_MAX });
        }
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        manifest.validate()?;
        let canonical = manifest.to_bytes();
        if canonical != bytes {
            let same = canonical.iter().zip(bytes).take_while(|(a, b)| a == b);
            return Err(ManifestError::NotCanonical { at: same.count() });
        }
        Ok(manifest)
    }

    /// Checks versions, bounds, roles, shapes, offsets, lengths and hashes.
    ///
    /// # Errors
    /// [`ManifestError::Version`] or [`ManifestError::Inconsistent`].
    pub fn validate(&self) -> Result<(), ManifestError> {
        for (what, got, expected) in [
            ("format", self.format, MANIFEST_FORMAT),
            ("layout version", self.layout_version, LAYOUT_VERSION),
        ] {
            if got != expected {
                return Err(ManifestError::Version { what, got, expected });
            }
        }
        self.check_numbers()
            .map_err(|what| ManifestError::Inconsistent { place: "the model".to_owned(), what })?;
        let mut bytes_by_hash = LiteMap::new();
        for (i, part) in self.parts.iter().enumerate() {
            self.check_part(i, part, &mut bytes_by_hash)
                .map_err(|what| ManifestError::Inconsistent { place: format!("part {i}"), what })?;
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), String> {
        check_name(&self.name).map_err(|why| format!("a name that is not allowed: {why}"))?;
        self.dims.check()?;
        let eps = self.rms_eps();
        if !(eps > 0.0 && eps < 1.0) {
            return Err(format!("epsilon {eps}, expected one in (0, 1)"));
        }
        let (got, expected) = (self.rope.inv_freq_bits.len(), self.dims.head_dim as usize / 2);
        if got != expected {
            return Err(format!("{got} RoPE frequencies, expected {expected}"));
        }
        if !self.rope.in_range() {
            return Err("RoPE frequencies outside (0, 1]".to_owned());
        }
        let (got, expected) = (self.parts.len(), self.dims.layers as usize + 2);
        if got != expected {
            return Err(format!("{got} parts, expected {expected}"));
        }
        Ok(())
    }

    fn check_part<'m>(
        &'m self,
        index: usize,
        part: &'m Part,
        bytes_by_hash: &mut LiteMap<&'m str, u64>,
    ) -> Result<(), String> {
        let head = index == self.parts.len() - 1;
        let expected = if head { 2 } else { 1 };
        if part.blobs.len() != expected {
            return Err(format!("{} blobs, expected {expected}", part.blobs.len()));
        }
        for (i, blob) in part.blobs.iter().enumerate() {
            let tied = head && i == 1 && blob == &self.parts[0].blobs[0];
            let roles: &[Role] = match (index, i) {
                (0, _) => &[Role::TokenEmbedding],
                (_, 0) if head => &[Role::OutputNorm],
                _ if tied => &[Role::TokenEmbedding],
                _ if head => &[Role::Output],
                _ => self.architecture.layer_roles(),
            };
            self.check_blob(blob, roles)?;
            let known = *bytes_by_hash.entry(&blob.hash).or_insert(blob.bytes);
            if known != blob.bytes {
                let (hash, got) = (&blob.hash, blob.bytes);
                return Err(format!("blob {hash} of {got} bytes, elsewhere it has {known}"));
            }
        }
        Ok(())
    }

    fn check_blob(&self, blob: &Blob, roles: &[Role]) -> Result<(), String> {
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if blob.hash.len() != 64 || !blob.hash.bytes().all(hex) {
            return Err("a hash that is not 64 lower-case hex digits".to_owned());
        }
        let got: Vec<Role> = blob.tensors.iter().map(|t| t.role).collect();
        if got != roles {
            return Err(format!("the tensors {got:?}, expected {roles:?}"));
        }
        for tensor in &blob.tensors {
            let (role, got) = (tensor.role, (tensor.rows, tensor.cols));
            let expected = role.shape(&self.dims);
            if got != expected {
                return Err(format!("{role:?} of {got:?} rows and columns, expected {expected:?}"));
            }
            if role.is_vector() && tensor.layout != Layout::F32 {
                return Err(format!("{role:?} as {:?}, expected F32", tensor.layout));
            }
        }
        let shapes = blob.tensors.iter().map(|t| (t.role, t.layout, t.rows, t.cols));
        let Some((placed, bytes)) = place_in_blob(shapes) else {
            return Err("a matrix whose columns are no whole number of its cells".to_owned());
        };
        if placed != blob.tensors {
            return Err("tensors at other offsets than their order and sizes give".to_owned());
        }
        if bytes != blob.bytes {
            return Err(format!("a blob of {} bytes, its tensors take {bytes}", blob.bytes));
        }
        Ok(())
    }

    /// RMS norm epsilon.
    pub fn rms_eps(&self) -> f32 {
        f32::from_bits(self.rms_eps_bits)
    }

    /// True if the embedding's blob is also the head's.
    pub fn tied(&self) -> bool {
        let head = self.parts.last().and_then(|part| part.blobs.last());
        head.is_some() && head == self.parts.first().and_then(|part| part.blobs.last())
    }

    /// Index of the head among the parts: `layers + 1`.
    pub fn head_part(&self) -> u32 {
        self.dims.layers + 1
    }

    /// Bytes of weights that part `part` needs by itself.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn part_bytes(&self, part: u32) -> u64 {
        self.parts[part as usize].blobs.iter().map(|blob| blob.bytes).sum()
    }

    /// The blobs that parts `parts` need, each once, in the parts' order.
    ///
    /// # Panics
    /// If it goes beyond the parts.
    pub fn blobs_of(&self, parts: std::ops::Range<u32>) -> Vec<&Blob> {
        let mut blobs: Vec<&Blob> = Vec::new();
        let mut seen: LiteMap<_, ()> = LiteMap::new();
        for part in &self.parts[parts.start as usize..parts.end as usize] {
            blobs.extend(part.blobs.iter().filter(|blob| seen.insert(&blob.hash, ()).is_none()));
        }
        blobs
    }

    /// Bytes of weights that parts `parts` need together; a tied head counts once.
    ///
    /// # Panics
    /// If it goes beyond the parts.
    pub fn span_bytes(&self, parts: std::ops::Range<u32>) -> u64 {
        self.blobs_of(parts).iter().map(|blob| blob.bytes).sum()
    }

    /// Bytes that one position takes in the KV cache of one layer: K and V, `[K, hd]` each.
    pub fn kv_bytes_per_position(&self, kv: KvType) -> u64 {
        let width = match kv {
            KvType::F16 => 2,
            KvType::F32 => 4,
        };
        2 * width * u64::from(self.dims.kv_heads) * u64::from(self.dims.head_dim)
    }

    /// The tensor of that role in a part, and the blob it lies in; a tied head's
    /// [`Role::Output`] is the embedding.
    pub fn tensor(&self, part: u32, role: Role) -> Option<(&Blob, &Tensor)> {
        let role = match role {
            Role::Output if part == self.head_part() && self.tied() => Role::TokenEmbedding,
            other => other,
        };
        let blobs = &self.parts.get(part as usize)?.blobs;
        blobs.iter().find_map(|b| Some((b, b.tensors.iter().find(|t| t.role == role)?)))
    }
}

#[cfg(test)]
mod tests;
