//! One segment: a fixed header, then the ciphertext. Sealed once by the node agent and never re-encoded after that:
//! the spool, the stream and the collector's store carry the same bytes.

use aws_lc_rs::aead::{Aad, Nonce};
use bytes::{BufMut, Bytes, BytesMut};
use ed25519_dalek::{SigningKey, VerifyingKey};

use super::keys::SessionKey;
use super::{FORMAT_VERSION, Hash, NO_HASH, SIGNATURE_BYTES, hash, sign, signature_holds};
use crate::ids::{GenerationId, NodeId, RunId, SessionId};

/// A segment is cut before its plaintext grows past this.
pub const SEGMENT_PLAIN_TARGET: usize = 256 * 1024;
/// No segment's plaintext is longer; what opens a segment allocates at most this.
pub const SEGMENT_PLAIN_MAX: usize = 1024 * 1024;
/// No segment holds more events: opening one allocates for each, however short it is.
pub const SEGMENT_EVENTS_MAX: u32 = 16_384;
/// Fixed length of the header.
pub const HEADER_BYTES: usize = 200;
/// The AES-GCM tag at the end of the ciphertext.
pub const TAG_BYTES: usize = 16;
/// No segment is longer: header, incompressible plaintext, tag.
pub const SEGMENT_BYTES_MAX: usize = HEADER_BYTES + SEGMENT_PLAIN_MAX + TAG_BYTES;

const MAGIC: [u8; 4] = *b"WSEG";
const DOMAIN: &[u8] = b"weir segment v1";
const FLAG_LAST: u8 = 1;
const FLAG_WALL_SYNCHRONIZED: u8 = 2;

/// How the plaintext is stored under the encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Raw,
    Zstd,
}

/// Wall-clock time at one instant of the node's CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub unix_ns: i64,
    pub boot_ns: u64,
    /// The kernel's clock discipline says that the wall clock is right.
    pub synchronized: bool,
}

/// Where the events were in the node agent's journal, so that recovery knows what is already sealed.
/// Positions count bytes since the journal's creation and never wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalRange {
    pub journal: [u8; 16],
    /// Start of the first record.
    pub from: u64,
    /// End of the last record.
    pub to: u64,
}

/// What the cutter knows about a segment before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draft {
    pub node: NodeId,
    pub session: SessionId,
    /// The session's number in the node log: which session this is can be told without any key.
    pub number: u64,
    pub run: RunId,
    pub generation: GenerationId,
    /// From 0 in each session, without a hole. Also the nonce, so never twice under one generation.
    pub seq: u64,
    /// Hash of the segment before, zeros for seq 0.
    pub prev_hash: Hash,
    /// Ends the session: nothing comes after.
    pub last: bool,
    pub first_ns: u64,
    pub last_ns: u64,
    pub wall: Anchor,
    pub events: u32,
    pub journal: JournalRange,
}

/// The header: the draft and what sealing added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub draft: Draft,
    pub codec: Codec,
    /// Length of the events before compression.
    pub plain_len: u32,
    /// Length of the ciphertext, tag included.
    pub cipher_len: u32,
}

/// A sealed segment, ready for the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Header and ciphertext.
    pub bytes: Bytes,
    pub hash: Hash,
    pub signature: [u8; SIGNATURE_BYTES],
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealError {
    #[error("a segment holds 1 to {SEGMENT_PLAIN_MAX} bytes of events, this one {0}")]
    Length(usize),
    #[error("a segment holds 1 to {SEGMENT_EVENTS_MAX} events, this one {0}")]
    Events(u32),
    #[error("the cipher refused to encrypt")]
    Cipher,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SegmentError {
    #[error("a segment of {len} bytes, {expected} expected")]
    Length { len: usize, expected: usize },
    #[error("not a segment: it does not begin with WSEG")]
    Magic,
    #[error("segment format {0} is not known here (known: {FORMAT_VERSION})")]
    Format(u16),
    #[error("the segment header is malformed: {0}")]
    Header(&'static str),
    #[error("the segment's signature is not by this node's key")]
    Signature,
    #[error("the segment does not decrypt: wrong key, or changed")]
    Decrypt,
    #[error("the segment does not decompress to its declared length")]
    Decompress,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let d = &self.draft;
        let mut flags = 0;
        if d.last {
            flags |= FLAG_LAST;
        }
        if d.wall.synchronized {
            flags |= FLAG_WALL_SYNCHRONIZED;
        }
        let mut out = [0; HEADER_BYTES];
        let mut b = &mut out[..];
        b.put_slice(&MAGIC);
        b.put_u16(FORMAT_VERSION);
        b.put_u8(match self.codec {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        });
        b.put_u8(flags);
        b.put_slice(d.node.as_bytes());
        b.put_slice(d.session.as_bytes());
        b.put_slice(d.run.as_bytes());
        b.put_slice(d.generation.as_bytes());
        b.put_u64(d.number);
        b.put_u64(d.seq);
        b.put_slice(&d.prev_hash);
        b.put_u64(d.first_ns);
        b.put_u64(d.last_ns);
        b.put_i64(d.wall.unix_ns);
        b.put_u64(d.wall.boot_ns);
        b.put_u32(self.plain_len);
        b.put_u32(self.cipher_len);
        b.put_u32(d.events);
        b.put_u32(0); // reserved
        b.put_slice(&d.journal.journal);
        b.put_u64(d.journal.from);
        b.put_u64(d.journal.to);
        out
    }

    /// Reads a header and checks all that it can say about itself; the bytes may come from anybody.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, SegmentError> {
        let mut r = Fields(bytes);
        if r.take::<4>() != MAGIC {
            return Err(SegmentError::Magic);
        }
        let format = u16::from_be_bytes(r.take());
        if format != FORMAT_VERSION {
            return Err(SegmentError::Format(format));
        }
        let [codec, flags] = r.take();
        let codec = match codec {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return Err(SegmentError::Header("unknown codec")),
        };
        if flags & !(FLAG_LAST | FLAG_WALL_SYNCHRONIZED) != 0 {
            return Err(SegmentError::Header("unknown flags"));
        }
        let node = NodeId::from_bytes(r.take());
        let session = SessionId::from_bytes(r.take());
        let run = RunId::from_bytes(r.take());
        let generation = GenerationId::from_bytes(r.take());
        let number = r.u64();
        let seq = r.u64();
        let prev_hash = r.take();
        let first_ns = r.u64();
        let last_ns = r.u64();
        let wall = Anchor {
            unix_ns: i64::from_be_bytes(r.take()),
            boot_ns: r.u64(),
            synchronized: flags & FLAG_WALL_SYNCHRONIZED != 0,
        };
        let plain_len = r.u32();
        let cipher_len = r.u32();
        let events = r.u32();
        if r.u32() != 0 {
            return Err(SegmentError::Header("reserved bytes are not zero"));
        }
        let journal = JournalRange { journal: r.take(), from: r.u64(), to: r.u64() };
        let draft = Draft {
            node,
            session,
            number,
            run,
            generation,
            seq,
            prev_hash,
            last: flags & FLAG_LAST != 0,
            first_ns,
            last_ns,
            wall,
            events,
            journal,
        };
        let header = Self { draft, codec, plain_len, cipher_len };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), SegmentError> {
        let plain = self.plain_len as usize;
        let cipher = self.cipher_len as usize;
        if plain == 0 || plain > SEGMENT_PLAIN_MAX {
            return Err(SegmentError::Header("plaintext length out of bounds"));
        }
        let fits = match self.codec {
            Codec::Raw => cipher == plain + TAG_BYTES,
            Codec::Zstd => cipher > TAG_BYTES && cipher < plain + TAG_BYTES,
        };
        if !fits {
            return Err(SegmentError::Header("ciphertext length does not fit the plaintext's"));
        }
        if self.draft.events == 0 || self.draft.events as usize > plain {
            return Err(SegmentError::Header("event count does not fit the plaintext's length"));
        }
        if self.draft.events > SEGMENT_EVENTS_MAX {
            return Err(SegmentError::Header("more events than a segment holds"));
        }
        if (self.draft.seq == 0) != (self.draft.prev_hash == NO_HASH) {
            return Err(SegmentError::Header("only the first segment has no predecessor"));
        }
        if self.draft.journal.from > self.draft.journal.to {
            return Err(SegmentError::Header("journal range runs backwards"));
        }
        Ok(())
    }
}

/// Reads fixed-width fields; the array type proves that they are there.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        if let Some((field, rest)) = self.0.split_first_chunk::<N>() {
            out = *field;
            self.0 = rest;
        }
        out
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

/// Seals segments with the node's signing key. Keeps a compression context, which is costly to make.
pub struct Sealer {
    signer: SigningKey,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    level: i32,
}

impl Sealer {
    /// `level`: zstd's; a lower one is faster.
    pub fn new(signer: SigningKey, level: i32) -> Self {
        // Without a context (out of memory) segments are stored raw: sealing goes on.
        let compressor = zstd::bulk::Compressor::new(level).ok();
        Self { signer, compressor, level }
    }

    /// Changes the compression level, for the segments to come.
    pub fn set_level(&mut self, level: i32) {
        if level != self.level
            && let Some(compressor) = &mut self.compressor
            && compressor.set_compression_level(level).is_ok()
        {
            self.level = level;
        }
    }

    /// Compresses (raw where that does not shrink), encrypts, hashes, signs. Each segment carries its own signature:
    /// it costs some 15 us where compressing the same segment costs a millisecond, and every segment stands alone.
    ///
    /// The caller owes that (`key`, `draft.seq`) is used for one content only, ever.
    pub fn seal(&mut self, draft: &Draft, plain: &[u8], key: &SessionKey) -> Result<Sealed, SealError> {
        if plain.is_empty() || plain.len() > SEGMENT_PLAIN_MAX {
            return Err(SealError::Length(plain.len()));
        }
        if !(1..=SEGMENT_EVENTS_MAX).contains(&draft.events) {
            return Err(SealError::Events(draft.events));
        }
        let compressed = self.compressor.as_mut().and_then(|c| c.compress(plain).ok());
        let (codec, body) = match &compressed {
            Some(shorter) if shorter.len() < plain.len() => (Codec::Zstd, shorter.as_slice()),
            _ => (Codec::Raw, plain),
        };
        let header = SegmentHeader {
            draft: *draft,
            codec,
            // Both are at most SEGMENT_PLAIN_MAX + TAG_BYTES.
            plain_len: plain.len() as u32,
            cipher_len: (body.len() + TAG_BYTES) as u32,
        };
        let head = header.encode();
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len() + TAG_BYTES);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(body);
        let tag = key
            .cipher()
            .and_then(|cipher| {
                cipher
                    .seal_in_place_separate_tag(
                        nonce(draft.seq),
                        Aad::from(&head),
                        &mut bytes[HEADER_BYTES..],
                    )
                    .ok()
            })
            .ok_or(SealError::Cipher)?;
        bytes.extend_from_slice(tag.as_ref());
        let hash = segment_hash(&head, &bytes[HEADER_BYTES..]);
        let signature = sign(&self.signer, DOMAIN, &hash);
        Ok(Sealed { bytes: bytes.freeze(), hash, signature })
    }
}

impl Sealed {
    /// As the stream carries it.
    pub fn to_message(&self) -> crate::v1::SealedSegment {
        crate::v1::SealedSegment {
            bytes: self.bytes.clone(),
            signature: Bytes::copy_from_slice(&self.signature),
        }
    }
}

/// A segment as received: well-formed, nothing else is known yet.
#[derive(Debug, Clone)]
pub struct Segment {
    header: SegmentHeader,
    bytes: Bytes,
    hash: Hash,
}

impl Segment {
    /// Checks form and length; never panics, keeps the bytes without copying. What it holds is not proven by this.
    pub fn parse(bytes: Bytes) -> Result<Self, SegmentError> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(SegmentError::Length { len: bytes.len(), expected: HEADER_BYTES });
        };
        let header = SegmentHeader::parse(head)?;
        let expected = HEADER_BYTES + header.cipher_len as usize;
        if bytes.len() != expected {
            return Err(SegmentError::Length { len: bytes.len(), expected });
        }
        let hash = segment_hash(head, &bytes[HEADER_BYTES..]);
        Ok(Self { header, bytes, hash })
    }

    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    pub fn draft(&self) -> &Draft {
        &self.header.draft
    }

    pub fn session(&self) -> SessionId {
        self.header.draft.session
    }

    pub fn seq(&self) -> u64 {
        self.header.draft.seq
    }

    /// Header and ciphertext, as parsed.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn hash(&self) -> &Hash {
        &self.hash
    }

    /// Proves that the node that holds this key made exactly this header and ciphertext.
    pub fn verify(&self, key: &VerifyingKey, signature: &[u8]) -> Result<(), SegmentError> {
        if signature_holds(key, DOMAIN, &self.hash, signature) {
            Ok(())
        } else {
            Err(SegmentError::Signature)
        }
    }

    /// Decrypts and decompresses: the events, for [`super::events()`].
    pub fn open(&self, key: &SessionKey) -> Result<Bytes, SegmentError> {
        let cipher = key.cipher().ok_or(SegmentError::Decrypt)?;
        let aad = Aad::from(&self.bytes[..HEADER_BYTES]);
        let mut body = self.bytes[HEADER_BYTES..].to_vec();
        let len =
            cipher.open_in_place(nonce(self.seq()), aad, &mut body).map_err(|_| SegmentError::Decrypt)?.len();
        body.truncate(len);
        let plain = match self.header.codec {
            Codec::Raw => body,
            // `plain_len` is at most SEGMENT_PLAIN_MAX, and zstd stops with an error where the capacity ends.
            Codec::Zstd => zstd::bulk::decompress(&body, self.header.plain_len as usize)
                .map_err(|_| SegmentError::Decompress)?,
        };
        if plain.len() != self.header.plain_len as usize {
            return Err(SegmentError::Decompress);
        }
        Ok(plain.into())
    }
}

fn segment_hash(header: &[u8; HEADER_BYTES], ciphertext: &[u8]) -> Hash {
    hash(&[DOMAIN, header, &hash(&[ciphertext])])
}

/// 96 bits, the sequence number. Unique because the key belongs to one session under one generation.
fn nonce(seq: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&seq.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// For the fuzzers: whatever parses is walked through to the end with a fixed key.
pub fn fuzz_segment(data: &[u8]) {
    if let Ok(segment) = Segment::parse(Bytes::copy_from_slice(data)) {
        assert_eq!(
            segment.header.encode()[..],
            data[..HEADER_BYTES],
            "a header reads back as it was written"
        );
        let key = super::GenerationKey::from_bytes([7; 32]).session_key(&segment.session());
        let _ = segment.open(&key).map(|plain| super::events(plain).count());
    }
    super::events::fuzz_events(data);
}
