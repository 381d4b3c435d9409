//! Content codings of HTTP (RFC 9110, 8.4.1), decoded as the bytes come. Only for eyes: what is forwarded is never touched.
//!
//! Coded bytes come from peers, so a decoder gives out no more than it is allowed to, however small its input is; and it
//! refuses containers with room for text that it would not give out: nobody could mask that.

use std::io::{self, Write};

use zstd::stream::raw::Operation as _;

/// Largest window that a body may ask for to be shown, as a power of two: 16 MiB, the most that br has.
pub(crate) const SHOWN_WINDOW_LOG_MAX: u32 = 24;
/// The same, to be masked while it passes: 4 MiB, for each direction of each connection.
pub(crate) const MASKED_WINDOW_LOG_MAX: u32 = 22;
/// Where brotli puts what it decodes before it hands it on, bytes.
const BROTLI_BUFFER_BYTES: usize = 4 * 1024;
/// The same of zstd.
const ZSTD_BUFFER_BYTES: usize = 8 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// A coding, or several, that nobody here can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownCoding;

impl Coding {
    /// Of the value of a Content-Encoding field; `None` for no coding at all.
    pub(crate) fn of(value: &[u8]) -> Result<Option<Self>, UnknownCoding> {
        match value.trim_ascii().to_ascii_lowercase().as_slice() {
            b"" | b"identity" => Ok(None),
            b"gzip" | b"x-gzip" => Ok(Some(Self::Gzip)),
            b"deflate" => Ok(Some(Self::Deflate)),
            b"br" => Ok(Some(Self::Brotli)),
            b"zstd" => Ok(Some(Self::Zstd)),
            _ => Err(UnknownCoding),
        }
    }
}

/// Why decoding stopped.
#[derive(Debug, thiserror::Error)]
#[error("the coded body cannot be read")]
pub(crate) struct DecodeError(#[source] io::Error);

/// Reads one coded body.
pub(crate) struct Decoder {
    inner: Inner,
    window_log_max: u32,
    begun: bool,
}

enum Inner {
    Gzip(Box<GzipMembers>),
    /// "deflate" is zlib's format, but some peers send it bare: the first two bytes tell.
    Deflate(Vec<u8>),
    Zlib(Box<flate2::write::ZlibDecoder<Sink>>),
    Bare(Box<flate2::write::DeflateDecoder<Sink>>),
    Brotli(Box<brotli_decompressor::DecompressorWriter<Sink>>),
    Zstd(Box<ZstdFrames>),
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    pub(crate) fn new(coding: Coding, window_log_max: u32) -> Result<Self, DecodeError> {
        let sink = Sink::default();
        let inner = match coding {
            Coding::Gzip => Inner::Gzip(Box::new(GzipMembers::new(sink))),
            Coding::Deflate => Inner::Deflate(Vec::new()),
            Coding::Brotli => {
                let decoder = brotli_decompressor::DecompressorWriter::new(sink, BROTLI_BUFFER_BYTES);
                Inner::Brotli(Box::new(decoder))
            }
            Coding::Zstd => {
                Inner::Zstd(Box::new(ZstdFrames::new(sink, window_log_max).map_err(DecodeError)?))
            }
        };
        Ok(Self { inner, window_log_max, begun: false })
    }

    /// Adds what these bytes decode to, at most `room` bytes. After an error nothing more can be decoded; what was decoded
    /// before it is in `decoded`.
    pub(crate) fn push(
        &mut self,
        coded: &[u8],
        room: usize,
        decoded: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        if let Inner::Deflate(first) = &mut self.inner {
            first.extend_from_slice(coded);
            let [one, two, ..] = first[..] else { return Ok(()) };
            let coded = std::mem::take(first);
            let is_zlib = one & 0x0f == 8 && (u16::from(one) << 8 | u16::from(two)).is_multiple_of(31);
            self.inner = if is_zlib {
                Inner::Zlib(Box::new(flate2::write::ZlibDecoder::new(Sink::default())))
            } else {
                Inner::Bare(Box::new(flate2::write::DeflateDecoder::new(Sink::default())))
            };
            return self.push(&coded, room, decoded);
        }
        if let (Inner::Brotli(_), false, Some(first)) = (&self.inner, self.begun, coded.first()) {
            self.begun = true;
            if brotli_window_log(*first) > self.window_log_max {
                return Err(DecodeError(io::Error::other("its window is too large")));
            }
        }
        self.sink(|sink| *sink = Sink { decoded: std::mem::take(decoded), room });
        let written = self.write(coded);
        self.sink(|sink| *decoded = std::mem::take(&mut sink.decoded));
        written.map_err(DecodeError)
    }

    fn write(&mut self, coded: &[u8]) -> io::Result<()> {
        match &mut self.inner {
            Inner::Gzip(members) => members.write(coded),
            Inner::Zlib(decoder) => write(decoder, coded),
            Inner::Bare(decoder) => write(decoder, coded),
            Inner::Brotli(decoder) => write(decoder, coded),
            Inner::Zstd(frames) => frames.write(coded),
            Inner::Deflate(_) => Ok(()),
        }
    }

    fn sink(&mut self, change: impl FnOnce(&mut Sink)) {
        match &mut self.inner {
            Inner::Gzip(members) => change(members.decoder.get_mut()),
            Inner::Zlib(decoder) => change(decoder.get_mut()),
            Inner::Bare(decoder) => change(decoder.get_mut()),
            Inner::Brotli(decoder) => change(decoder.get_mut()),
            Inner::Zstd(frames) => change(&mut frames.sink),
            Inner::Deflate(_) => {}
        }
    }
}

/// The members of a gzip body (RFC 1952), one after the other.
struct GzipMembers {
    decoder: flate2::write::GzDecoder<Sink>,
    /// How much of the member's head was seen, up to its flags.
    head_bytes: usize,
}

/// Where a member's head has its flags.
const GZIP_FLAGS_AT: usize = 3;
/// FEXTRA, FNAME and FCOMMENT: the head holds a field of its own, a name of a file, a comment.
const GZIP_TEXT_FLAGS: u8 = 0b1_1100;

impl GzipMembers {
    fn new(sink: Sink) -> Self {
        Self { decoder: flate2::write::GzDecoder::new(sink), head_bytes: 0 }
    }

    fn write(&mut self, mut coded: &[u8]) -> io::Result<()> {
        while !coded.is_empty() {
            let taken = self.decoder.write(coded)?;
            if taken == 0 && self.head_bytes == 0 {
                return Err(io::Error::other("no member begins here"));
            }
            if taken == 0 {
                // The member has ended. What follows is another one, or it is refused.
                self.decoder.try_finish()?;
                *self = Self::new(std::mem::take(self.decoder.get_mut()));
                continue;
            }
            if self.head_bytes <= GZIP_FLAGS_AT {
                let flags = coded[..taken].get(GZIP_FLAGS_AT - self.head_bytes);
                if flags.is_some_and(|flags| flags & GZIP_TEXT_FLAGS != 0) {
                    return Err(io::Error::other("its head holds text"));
                }
                self.head_bytes += taken;
            }
            coded = &coded[taken..];
        }
        self.decoder.flush()
    }
}

/// The frames of a zstd body (RFC 8878), one after the other.
struct ZstdFrames {
    decoder: zstd::stream::raw::Decoder<'static>,
    /// The next byte begins a frame.
    begins: bool,
    sink: Sink,
}

/// The first byte of every frame that is not to be skipped.
const ZSTD_FIRST_BYTE: u8 = 0x28;

impl ZstdFrames {
    fn new(sink: Sink, window_log_max: u32) -> io::Result<Self> {
        let mut decoder = zstd::stream::raw::Decoder::new()?;
        decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(window_log_max))?;
        Ok(Self { decoder, begins: true, sink })
    }

    fn write(&mut self, mut coded: &[u8]) -> io::Result<()> {
        let mut buffer = [0; ZSTD_BUFFER_BYTES];
        loop {
            if self.begins {
                match coded.first() {
                    None => return Ok(()),
                    Some(&ZSTD_FIRST_BYTE) => self.decoder.reinit()?,
                    Some(_) => return Err(io::Error::other("a frame that decoders skip")),
                }
            }
            let status = self.decoder.run_on_buffers(coded, &mut buffer)?;
            self.sink.write_all(&buffer[..status.bytes_written])?;
            coded = &coded[status.bytes_read..];
            self.begins = status.remaining == 0;
            let is_drained = status.bytes_written < buffer.len();
            if coded.is_empty() && is_drained {
                return Ok(());
            }
            if status.bytes_read == 0 && status.bytes_written == 0 {
                return Err(io::Error::other("zstd does not go on"));
            }
        }
    }
}

/// What the first byte of a brotli stream says (RFC 7932, 9.1); beyond all measure for what the RFC does not know.
fn brotli_window_log(first: u8) -> u32 {
    match (first & 1, first >> 1 & 7, first >> 4 & 7) {
        (0, ..) => 16,
        (_, 0, 0) => 17,
        (_, 0, 1) => u32::MAX,
        (_, 0, bits) => 8 + u32::from(bits),
        (_, bits, _) => 17 + u32::from(bits),
    }
}

/// Flushed, so that what a reader could see by now is seen.
fn write(decoder: &mut impl Write, coded: &[u8]) -> io::Result<()> {
    decoder.write_all(coded)?;
    decoder.flush()
}

/// Takes what is decoded, up to its room.
#[derive(Debug, Default)]
struct Sink {
    decoded: Vec<u8>,
    room: usize,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        self.decoded.extend_from_slice(&bytes[..taken]);
        self.room -= taken;
        if taken < bytes.len() {
            return Err(io::Error::other("it grows too large"));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn bare(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// One meta-block that holds its 26 bytes as they are (RFC 7932, 9.2).
    const BROTLI: &[u8] = b"\x8b\x0c\x80hello hello hello, brotli\n\x03";

    fn decode(coding: Coding, coded: &[u8], cut: usize, room: usize) -> (Vec<u8>, bool) {
        let mut decoder = Decoder::new(coding, SHOWN_WINDOW_LOG_MAX).unwrap();
        let mut decoded = Vec::new();
        for part in coded.chunks(cut) {
            let room = room - decoded.len();
            if decoder.push(part, room, &mut decoded).is_err() {
                return (decoded, false);
            }
        }
        (decoded, true)
    }

    #[test]
    fn every_coding_is_read_however_it_is_cut() {
        let plain = b"some words, some words, and some more words".repeat(50);
        let coded = [
            (Coding::Gzip, gzip(&plain)),
            (Coding::Deflate, zlib(&plain)),
            (Coding::Deflate, bare(&plain)),
            (Coding::Zstd, zstd::encode_all(&plain[..], 3).unwrap()),
        ];
        for (coding, coded) in coded {
            for cut in [1, 7, coded.len()] {
                let (decoded, sound) = decode(coding, &coded, cut, 1 << 20);
                assert!(sound && decoded == plain, "{coding:?} in parts of {cut}");
            }
        }
        for cut in [1, 5, BROTLI.len()] {
            let (decoded, sound) = decode(Coding::Brotli, BROTLI, cut, 1 << 20);
            assert_eq!(
                (decoded.escape_ascii().to_string().as_str(), sound),
                ("hello hello hello, brotli\\n", true)
            );
        }
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        for (coding, one) in
            [(Coding::Gzip, gzip(b"one, ")), (Coding::Zstd, zstd::encode_all(&b"one, "[..], 3).unwrap())]
        {
            for cut in [1, 3, 7, 1000] {
                let (decoded, sound) = decode(coding, &one.repeat(3), cut, 1 << 20);
                assert!(sound && decoded == b"one, one, one, ", "{coding:?} in parts of {cut}");
            }
        }
    }

    /// Text that no reader of the decoded body sees must not pass for part of it.
    #[test]
    fn containers_with_room_for_other_text_are_refused() {
        let member = |builder: flate2::GzBuilder| {
            let mut encoder = builder.write(Vec::new(), flate2::Compression::default());
            encoder.write_all(b"shown").unwrap();
            encoder.finish().unwrap()
        };
        let skippable = [&[0x5f, 0x2a, 0x4d, 0x18, 6, 0, 0, 0][..], b"hidden"].concat();
        let hidden = [
            (Coding::Gzip, gzip(b"shown"), member(flate2::GzBuilder::new().filename("hidden"))),
            (Coding::Gzip, gzip(b"shown"), member(flate2::GzBuilder::new().comment("hidden"))),
            (Coding::Gzip, gzip(b"shown"), member(flate2::GzBuilder::new().extra("hidden"))),
            (Coding::Zstd, zstd::encode_all(&b"shown"[..], 3).unwrap(), skippable),
            (Coding::Deflate, zlib(b"shown"), b"hidden".to_vec()),
            (Coding::Deflate, bare(b"shown"), b"hidden".to_vec()),
            (Coding::Brotli, BROTLI.to_vec(), b"hidden".to_vec()),
        ];
        for (coding, sound, hides) in hidden {
            for cut in [1, 2, 5, 1000] {
                if matches!(coding, Coding::Gzip | Coding::Zstd) {
                    assert!(!decode(coding, &hides, cut, 1 << 20).1, "{coding:?} in parts of {cut}");
                }
                let both = [&sound[..], &hides].concat();
                let (decoded, is_sound) = decode(coding, &both, cut, 1 << 20);
                assert!(!is_sound, "{coding:?} in parts of {cut}");
                assert!(!decoded.is_empty(), "{coding:?}: what came before it is given");
            }
        }
    }

    #[test]
    fn a_bomb_gives_no_more_than_there_is_room_for() {
        let zeros = vec![0; 50_000_000];
        for (coding, coded) in
            [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd::encode_all(&zeros[..], 19).unwrap())]
        {
            let (decoded, sound) = decode(coding, &coded, coded.len(), 100_000);
            assert!(!sound && decoded.len() == 100_000, "{coding:?}: {}", decoded.len());
        }
    }

    #[test]
    fn what_is_damaged_gives_what_came_before() {
        let plain = (0..9000).flat_map(|n| format!("{}, ", n * n % 7919).into_bytes()).collect::<Vec<_>>();
        for (coding, mut coded) in [(Coding::Gzip, gzip(&plain)), (Coding::Deflate, zlib(&plain))] {
            let middle = coded.len() / 2;
            coded[middle..].fill(b'*');
            let (decoded, _) = decode(coding, &coded, 1, 1 << 20);
            assert!(plain.starts_with(&decoded[..10_000]), "{coding:?}");
        }
        assert!(!decode(Coding::Zstd, b"****************", 16, 100).1);
        assert!(!decode(Coding::Brotli, b"****************", 16, 100).1);
    }

    #[test]
    fn large_windows_are_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(26).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&[7; 1000]).unwrap();
        assert!(!decode(Coding::Zstd, &encoder.finish().unwrap(), 1 << 20, 1 << 20).1);
        let windows = [0x0b, 0x0f, 0x01, 0x21, 0x11, 0x00].map(brotli_window_log);
        assert_eq!(windows, [22, 24, 17, 10, u32::MAX, 16]);
        let mut decoder = Decoder::new(Coding::Brotli, MASKED_WINDOW_LOG_MAX).unwrap();
        assert!(decoder.push(b"\x0f\x00", 100, &mut Vec::new()).is_err());
    }

    #[test]
    fn names_of_codings() {
        assert_eq!(Coding::of(b" GZip "), Ok(Some(Coding::Gzip)));
        assert_eq!(Coding::of(b"identity"), Ok(None));
        assert_eq!(Coding::of(b"gzip, br"), Err(UnknownCoding));
    }
}
