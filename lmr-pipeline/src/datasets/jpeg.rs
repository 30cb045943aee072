//! How the scans of a JPEG are arranged, and so which decoder has its right pixels, if one has.
//!
//! The decoder of `image` takes every progressive file and sequential ones of a single scan. Where a sequential file has several
//! (a component in each, or some of them together), it misplaces blocks and says nothing; `jpeg_decoder` places them.

use std::io::Cursor;

use image::error::{DecodingError, ImageFormatHint, LimitError, LimitErrorKind};
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageResult};

/// What decodes a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// The decoder of `image`.
    Usual,
    /// [`Scanwise`].
    Scanwise,
}

/// The components of a frame by their numbers, and how often each has been begun.
struct Frame {
    progressive: bool,
    components: Vec<(u8, usize)>,
    scans: usize,
}

/// The decoder for a file whose segments and scans are sound, or what is wrong with it: found and expected.
pub fn decoder(jpeg: &[u8]) -> Result<Decoder, (String, String)> {
    let fault = |found: &str, expected: &str| Err((found.to_owned(), expected.to_owned()));
    let cut_off = || fault("a JPEG without its end", "a whole one; the file is cut off or damaged");
    let mut frame: Option<Frame> = None;
    // After the start marker.
    let mut rest = jpeg.get(2..).unwrap_or_default();
    loop {
        // Compressed data is passed over: in it, 0xff comes before 0 or the number of a restart.
        let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff);
        let Some(at) = rest.windows(2).position(is_marker) else { return cut_off() };
        let marker = rest[at + 1];
        if marker == 0xd9 {
            break;
        }
        let Some(&[high, low]) = rest.get(at + 2..at + 4) else { return cut_off() };
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let (Some(segment), Some(next)) = (rest.get(at + 4..end), rest.get(end..)) else { return cut_off() };
        match (marker, &mut frame) {
            (0xc0..=0xc2, None) => {
                let components =
                    segment.get(6..).unwrap_or_default().chunks_exact(3).map(|component| (component[0], 0));
                frame = Some(Frame { progressive: marker == 0xc2, components: components.collect(), scans: 0 });
            }
            (0xc0..=0xc2, Some(_)) => return fault("a JPEG of two frames", "one"),
            (0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf, _) => {
                let kind = match marker {
                    0xc3 => "a lossless",
                    0xc9..=0xcb => "an arithmetically coded",
                    _ => "a hierarchical",
                };
                return fault(&format!("{kind} JPEG"), "a sequential or progressive one; convert the image");
            }
            (0xda, Some(frame)) => frame.begin(segment)?,
            (0xda, None) => return fault("a JPEG whose pixels come before its frame", "the frame first"),
            _ => {}
        }
        rest = next;
    }
    frame.map_or_else(|| fault("a JPEG without a frame", "one"), |frame| frame.decoder())
}

impl Frame {
    /// Counts a scan for the components that its header names.
    fn begin(&mut self, header: &[u8]) -> Result<(), (String, String)> {
        let count = header.first().map_or(0, |count| usize::from(*count));
        let (Some(selectors), Some(first)) = (header.get(1..1 + 2 * count), header.get(1 + 2 * count)) else {
            return Err(("a JPEG with a damaged scan".to_owned(), "a whole one".to_owned()));
        };
        // Refinements and the higher frequencies of a progressive file come in any number.
        let is_first = *first == 0 && header.get(3 + 2 * count).is_some_and(|bits| bits >> 4 == 0);
        self.scans += 1;
        for number in selectors.iter().step_by(2) {
            let Some((_, begun)) = self.components.iter_mut().find(|(component, _)| component == number) else {
                return Err((
                    format!("a JPEG with a scan of component {number}"),
                    "a component of its frame".to_owned(),
                ));
            };
            *begun += usize::from(is_first);
        }
        Ok(())
    }

    fn decoder(&self) -> Result<Decoder, (String, String)> {
        if let Some((number, begun)) = self.components.iter().find(|(_, begun)| *begun != 1) {
            let found = format!("a JPEG with {begun} scans that begin component {number}");
            return Err((found, "one for each component; the file is cut off or damaged".to_owned()));
        }
        match (self.progressive || self.scans == 1, self.components.len()) {
            (true, _) => Ok(Decoder::Usual),
            (false, 1..=3) => Ok(Decoder::Scanwise),
            (false, count) => {
                let found = format!("a sequential JPEG of {count} components in {} scans", self.scans);
                Err((found, "at most 3 components, or all in one scan; convert the image".to_owned()))
            }
        }
    }
}

/// A JPEG decoded by `jpeg_decoder`.
pub struct Scanwise<'a> {
    decoder: jpeg_decoder::Decoder<Cursor<&'a [u8]>>,
    size: (u32, u32),
    color: ColorType,
}

impl<'a> Scanwise<'a> {
    /// Reads the header. At most `max_bytes` are decoded.
    pub fn new(jpeg: &'a [u8], max_bytes: usize) -> ImageResult<Self> {
        let mut decoder = jpeg_decoder::Decoder::new(Cursor::new(jpeg));
        decoder.set_max_decoding_buffer_size(max_bytes);
        decoder.read_info().map_err(undecodable)?;
        let info = decoder.info().ok_or_else(|| undecodable("no frame"))?;
        let color = match info.pixel_format {
            jpeg_decoder::PixelFormat::L8 => ColorType::L8,
            jpeg_decoder::PixelFormat::RGB24 => ColorType::Rgb8,
            other => return Err(undecodable(format!("pixels of format {other:?}"))),
        };
        Ok(Self { decoder, size: (info.width.into(), info.height.into()), color })
    }
}

impl ImageDecoder for Scanwise<'_> {
    fn dimensions(&self) -> (u32, u32) {
        self.size
    }

    fn color_type(&self) -> ColorType {
        self.color
    }

    fn read_image(mut self, out: &mut [u8]) -> ImageResult<()> {
        let pixels = self.decoder.decode().map_err(undecodable)?;
        if pixels.len() != out.len() {
            return Err(ImageError::Limits(LimitError::from_kind(LimitErrorKind::DimensionError)));
        }
        out.copy_from_slice(&pixels);
        Ok(())
    }

    fn read_image_boxed(self: Box<Self>, out: &mut [u8]) -> ImageResult<()> {
        (*self).read_image(out)
    }
}

fn undecodable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ImageError {
    ImageError::Decoding(DecodingError::new(ImageFormatHint::Exact(ImageFormat::Jpeg), error))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// A frame of these components, and scans: components, first coefficient, bits before and after.
    fn jpeg(kind: u8, components: &[u8], scans: &[(&[u8], u8, u8)]) -> Vec<u8> {
        let mut file = vec![0xff, 0xd8];
        let mut segment = |marker: u8, body: Vec<u8>| {
            file.extend([0xff, marker]);
            file.extend((body.len() as u16 + 2).to_be_bytes());
            file.extend(body);
        };
        let frame = components.iter().flat_map(|number| [*number, 0x11, 0]);
        segment(kind, [8, 0, 1, 0, 1, components.len() as u8].into_iter().chain(frame).collect());
        for (members, first, bits) in scans {
            let selectors = members.iter().flat_map(|number| [*number, 0]);
            segment(0xda, [members.len() as u8].into_iter().chain(selectors).chain([*first, 63, *bits]).collect());
        }
        file.extend([0xff, 0xd9]);
        file
    }

    #[rstest]
    #[case::one(0xc0, &[(&[1, 2, 3][..], 0, 0)], Decoder::Usual)]
    #[case::each(0xc0, &[(&[1][..], 0, 0), (&[2], 0, 0), (&[3], 0, 0)], Decoder::Scanwise)]
    #[case::extended(0xc1, &[(&[1][..], 0, 0), (&[2, 3], 0, 0)], Decoder::Scanwise)]
    #[case::progressive(0xc2, &[(&[1, 2, 3][..], 0, 1), (&[1], 1, 0), (&[1, 2, 3], 0, 0x10)], Decoder::Usual)]
    fn the_right_decoder_is_taken(#[case] kind: u8, #[case] scans: &[(&[u8], u8, u8)], #[case] expected: Decoder) {
        assert_eq!(decoder(&jpeg(kind, &[1, 2, 3], scans)).unwrap(), expected);
    }

    #[rstest]
    #[case::lossless(jpeg(0xc3, &[1], &[]), "a lossless JPEG")]
    #[case::arithmetic(jpeg(0xc9, &[1], &[(&[1], 0, 0)]), "an arithmetically coded JPEG")]
    #[case::missing(jpeg(0xc0, &[1, 2], &[(&[1], 0, 0)]), "a JPEG with 0 scans that begin component 2")]
    #[case::twice(jpeg(0xc0, &[1, 2], &[(&[1, 2], 0, 0), (&[2], 0, 0)]), "a JPEG with 2 scans that begin component 2")]
    #[case::stranger(jpeg(0xc0, &[1], &[(&[7], 0, 0)]), "a JPEG with a scan of component 7")]
    #[case::never_begun(jpeg(0xc2, &[1], &[(&[1], 1, 0)]), "a JPEG with 0 scans that begin component 1")]
    #[case::ink(
        jpeg(0xc0, &[1, 2, 3, 4], &[(&[1, 2, 3], 0, 0), (&[4], 0, 0)]),
        "a sequential JPEG of 4 components in 2 scans"
    )]
    #[case::no_frame(vec![0xff, 0xd8, 0xff, 0xd9], "a JPEG without a frame")]
    fn what_no_decoder_has_right_is_refused(#[case] file: Vec<u8>, #[case] found: &str) {
        assert_eq!(decoder(&file).unwrap_err().0, found);
    }
}
