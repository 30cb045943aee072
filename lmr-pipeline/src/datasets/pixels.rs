//! One encoded image to bytes, with the numbers of Pillow's `convert`.
//!
//! Grey becomes three equal channels and colour luma, palettes and CMYK become colours, transparency is dropped. Of 16
//! bits, the upper eight stay; 16-bit grey is cut off at 255. EXIF orientation is not applied. All this is what torchvision's
//! `ImageFolder` hands on. PNG and JPEG always, other formats with the feature `image-formats`.

use std::io::Cursor;

use image::metadata::Orientation::NoTransforms;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::jpeg::{self, Scanwise};
use crate::preprocess::{Preprocessing, Raster};

/// More than any honest image needs while it is decoded: 89 million pixels of three bytes, where Pillow warns.
const MAX_ALLOC: u64 = 256 << 20;
/// What a JPEG's header can hold. A PNG's could make the rows of a stretched image exhaust memory.
const MAX_SIDE: u32 = 65_535;

/// What is wrong with an image: found and expected.
pub(super) type Fault = (String, String);

/// What encoded images become.
#[derive(Clone, Debug)]
pub(super) struct Decoding {
    /// Channels, height and width.
    pub shape: [usize; 3],
    /// How an image of any size is brought to them; without it, only images that have them are taken.
    pub preprocessing: Option<Preprocessing>,
}

impl Decoding {
    /// Decodes an image into `out`, in CHW order.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut [u8]) -> Result<(), Fault> {
        let [channels, height, width] = self.shape;
        let image = raster(self.open(bytes)?, channels)?;
        if let Some(preprocessing) = &self.preprocessing {
            preprocessing.resize_and_crop(&image, out);
            return Ok(());
        }
        // Stored with the channels of a pixel together; wanted one channel after the other.
        for (channel, plane) in out.chunks_exact_mut(height * width).enumerate() {
            for (out, pixel) in plane.iter_mut().zip(image.pixels.chunks_exact(channels)) {
                *out = pixel[channel];
            }
        }
        Ok(())
    }

    /// Refuses what cannot be decoded, as far as the header and the structure of the file show it.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), Fault> {
        self.open(bytes).map(drop)
    }

    /// The size is compared before a pixel is decoded, so a small file cannot claim a huge image.
    fn open<'a>(&self, bytes: &'a [u8]) -> Result<Box<dyn ImageDecoder + 'a>, Fault> {
        let decoder = open(bytes)?;
        let [_, height, width] = self.shape;
        let (found_width, found_height) = decoder.dimensions();
        if self.preprocessing.is_none() && (found_height as usize, found_width as usize) != (height, width) {
            let found = format!("an image of {found_height}x{found_width} (height, width)");
            return Err((found, format!("{height}x{width}")));
        }
        Ok(decoder)
    }

    /// Bytes that determine the pixels of an encoded image with this digest.
    pub(super) fn identity(&self, sha256: &[u8; 32]) -> Vec<u8> {
        let how = self.preprocessing.as_ref().map(|how| (how.resize, how.interpolation));
        [&sha256[..], format!("{:?} {how:?}", self.shape).as_bytes()].concat()
    }
}

/// Decodes an image of any size.
#[cfg(test)]
pub(crate) fn decode_raster(bytes: &[u8], channels: usize) -> Result<Raster, Fault> {
    raster(open(bytes)?, channels)
}

/// Reads the header.
fn open(bytes: &[u8]) -> Result<Box<dyn ImageDecoder + '_>, Fault> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| unreadable(image::ImageError::IoError(error)))?;
    let format = match reader.format() {
        Some(format) if FORMATS.contains(&format) => format,
        Some(format) if OTHER_FORMATS.contains(&format) => {
            let expected = format!("{EXPECTED}; build LMR with the feature `image-formats`, or convert the image");
            return Err((format!("an image of the format {format:?}"), expected));
        }
        _ => {
            let start = &bytes[..bytes.len().min(4)];
            return Err((format!("{} bytes that begin with {start:02x?}", bytes.len()), EXPECTED.to_owned()));
        }
    };
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let how = if format == ImageFormat::Jpeg { jpeg::decoder(bytes) } else { Ok(jpeg::Decoder::Usual) };
    // A damaged header says more about a damaged file than what its segments lack.
    let mut decoder: Box<dyn ImageDecoder> = match how {
        Ok(jpeg::Decoder::Scanwise) => Box::new(Scanwise::new(bytes, MAX_ALLOC as usize).map_err(unreadable)?),
        _ => Box::new(reader.into_decoder().map_err(unreadable)?),
    };
    let (width, height) = decoder.dimensions();
    let decoded = decoder.total_bytes().max(3 * u64::from(width) * u64::from(height));
    if width.max(height) > MAX_SIDE || decoded > MAX_ALLOC {
        let found = format!("an image of {height}x{width} (height, width), {decoded} bytes when decoded");
        return Err((found, format!("sides of at most {MAX_SIDE} and at most {MAX_ALLOC} bytes")));
    }
    how?;
    // Pillow turns TIFFs, and nothing else.
    let side = if format == ImageFormat::Tiff { decoder.orientation().map_err(unreadable)? } else { NoTransforms };
    if side != NoTransforms {
        return Err((format!("a TIFF that says it lies on another side ({side:?})"), "an upright one".to_owned()));
    }
    Ok(decoder)
}

/// What this build decodes.
const FORMATS: &[ImageFormat] = match cfg!(feature = "image-formats") {
    true => {
        &[ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Pnm, ImageFormat::Tiff, ImageFormat::WebP]
    }
    false => &[ImageFormat::Png, ImageFormat::Jpeg],
};
/// What a build with the feature `image-formats` decodes beyond PNG and JPEG.
const OTHER_FORMATS: &[ImageFormat] = &[ImageFormat::Bmp, ImageFormat::Pnm, ImageFormat::Tiff, ImageFormat::WebP];
const EXPECTED: &str =
    if cfg!(feature = "image-formats") { "a PNG, JPEG, BMP, PPM, TIFF or WebP" } else { "a PNG or JPEG" };

fn unreadable(error: image::ImageError) -> Fault {
    (format!("an unreadable image ({})", error.to_string().trim_end()), EXPECTED.to_owned())
}

fn raster(decoder: impl ImageDecoder, channels: usize) -> Result<Raster, Fault> {
    let image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    let (height, width) = (image.height() as usize, image.width() as usize);
    let stored = usize::from(image.color().channel_count());
    let upper = |values: Vec<u16>| values.into_iter().map(|value| (value >> 8) as u8).collect();
    let bytes: Vec<u8> = match image {
        DynamicImage::ImageLuma16(image) => image.into_raw().into_iter().map(|value| value.min(255) as u8).collect(),
        DynamicImage::ImageLumaA16(image) => upper(image.into_raw()),
        DynamicImage::ImageRgb16(image) => upper(image.into_raw()),
        DynamicImage::ImageRgba16(image) => upper(image.into_raw()),
        image @ (DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageRgb8(_)
        | DynamicImage::ImageRgba8(_)) => image.into_bytes(),
        other => {
            let found = format!("an image of floating-point numbers ({:?})", other.color());
            return Err((found, "one of 8 or 16 bits".to_owned()));
        }
    };
    let pixels = match (stored, channels) {
        (3, 3) | (1, 1) => bytes,
        (2, 1) => bytes.into_iter().step_by(2).collect(),
        (1 | 2, _) => bytes.into_iter().step_by(stored).flat_map(|grey| [grey; 3]).collect(),
        (_, 1) => bytes.chunks_exact(stored).map(|pixel| luma([pixel[0], pixel[1], pixel[2]])).collect(),
        _ => bytes.chunks_exact(stored).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
    };
    Ok(Raster { pixels, channels, height, width })
}

/// ITU-R 601 luma in 16-bit fixed point, the weights torchvision and Pillow use.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use proptest::prelude::*;
    use rstest::rstest;
    use serde::Deserialize;

    use super::*;
    use crate::model_config::Convention;

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn decode(
        bytes: &[u8],
        shape: [usize; 3],
        preprocessing: Option<Preprocessing>,
        out: &mut [u8],
    ) -> Result<(), Fault> {
        Decoding { shape, preprocessing }.decode(bytes, out)
    }

    /// Two rows, three columns; red counts columns, green counts rows.
    fn colour() -> RgbImage {
        RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 10, y as u8 * 100, 7]))
    }

    #[test]
    fn rows_stay_rows() {
        let mut out = [1; 18];
        decode(&encode(colour(), ImageFormat::Png), [3, 2, 3], None, &mut out).unwrap();
        assert_eq!(out, [0, 10, 20, 0, 10, 20, 0, 0, 0, 100, 100, 100, 7, 7, 7, 7, 7, 7]);
    }

    #[test]
    fn colour_and_grey_convert() {
        let mut grey = [0; 6];
        decode(&encode(colour(), ImageFormat::Png), [1, 2, 3], None, &mut grey).unwrap();
        // 0.299 r + 0.587 g + 0.114 b, rounded.
        assert_eq!(grey, [1, 4, 7, 59, 62, 65]);
        let source = GrayImage::from_fn(3, 2, |x, y| Luma([(y * 3 + x) as u8]));
        let mut rgb = [9; 18];
        decode(&encode(source, ImageFormat::Png), [3, 2, 3], None, &mut rgb).unwrap();
        assert_eq!(rgb[..6], [0, 1, 2, 3, 4, 5]);
        assert_eq!(rgb[12..], [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn jpeg_is_upright() {
        // Dark above, bright below, in blocks of the size JPEG works with.
        let source = RgbImage::from_fn(8, 16, |_, y| Rgb([if y < 8 { 10 } else { 240 }; 3]));
        let mut out = [0; 3 * 16 * 8];
        decode(&encode(source, ImageFormat::Jpeg), [3, 16, 8], None, &mut out).unwrap();
        assert!(out[..64].iter().all(|&v| v < 30) && out[64..128].iter().all(|&v| v > 220));
    }

    #[derive(Deserialize)]
    struct Fixtures {
        decoded: Vec<Decoded>,
    }

    #[derive(Deserialize)]
    struct Decoded {
        name: String,
        file: String,
        height: usize,
        width: usize,
        rgb: String,
        grey: String,
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn fixtures_in(text: &str) -> Vec<Decoded> {
        serde_json::from_str::<Fixtures>(text).unwrap().decoded
    }

    fn fixtures() -> Vec<Decoded> {
        fixtures_in(include_str!("../../tests/fixtures/images.json"))
    }

    #[cfg(feature = "image-formats")]
    #[test]
    fn other_formats_become_what_pillow_makes_of_them() {
        let found = fixtures_in(include_str!("../../tests/fixtures/formats.json"));
        assert!(found.len() > 25);
        for Decoded { name, file, height, width, rgb, grey } in found {
            // Pillow rounds the 16 bits of a PPM to eight, and cuts off those of others.
            let tolerance = u8::from(matches!(name.as_str(), "ppm 16" | "ppm of 1023"));
            for (channels, expected) in [(3, rgb), (1, grey)] {
                let image = decode_raster(&unhex(&file), channels).unwrap();
                assert_eq!((image.height, image.width), (height, width), "{name}");
                let worst = image.pixels.iter().zip(unhex(&expected)).map(|(a, b)| a.abs_diff(b)).max().unwrap();
                assert!(worst <= tolerance, "{name}, {channels} channels: {worst} levels apart");
            }
        }
    }

    #[cfg(feature = "image-formats")]
    #[rstest]
    #[case("palette", "RGBPalette with bits per sample [8] is unsupported")]
    #[case("turned", "a TIFF that says it lies on another side (Rotate90)")]
    #[case("float", "does not support the color type")]
    fn what_would_get_other_pixels_is_refused(#[case] name: &str, #[case] found: &str) {
        let all: serde_json::Value = serde_json::from_str(include_str!("../../tests/fixtures/formats.json")).unwrap();
        let fault = decode_raster(&unhex(all["refused"][name].as_str().unwrap()), 3).err().unwrap();
        assert!(fault.0.contains(found), "{fault:?}");
    }

    #[test]
    fn every_kind_becomes_what_pillow_makes_of_it() {
        for Decoded { name, file, height, width, rgb, grey } in fixtures() {
            // JPEG leaves decoders some freedom.
            let tolerance = if name.ends_with("png") { 0 } else { 3 };
            for (channels, expected) in [(3, rgb), (1, grey)] {
                let image = decode_raster(&unhex(&file), channels).unwrap();
                assert_eq!((image.height, image.width), (height, width), "{name}");
                let expected = unhex(&expected);
                assert_eq!(image.pixels.len(), expected.len(), "{name}");
                let worst = image.pixels.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(worst <= tolerance, "{name}, {channels} channels: {worst} levels apart");
            }
        }
    }

    #[test]
    fn scans_in_any_arrangement_become_what_pillow_makes_of_them() {
        #[derive(Deserialize)]
        struct Scans {
            decoded: Vec<Arranged>,
        }
        #[derive(Deserialize)]
        struct Arranged {
            name: String,
            file: String,
            rgb: String,
        }
        let found: Scans = serde_json::from_str(include_str!("../../tests/fixtures/scans.json")).unwrap();
        assert!(found.decoded.len() > 70);
        for Arranged { name, file, rgb } in found.decoded {
            let (image, expected) = (decode_raster(&unhex(&file), 3).unwrap(), unhex(&rgb));
            let worst = image.pixels.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(image.pixels.len() == expected.len() && worst <= 3, "{name}: {worst} levels apart");
        }
    }

    #[test]
    fn an_image_of_any_size_is_resized() {
        let source = RgbImage::from_fn(40, 30, |_, y| Rgb([if y < 15 { 10 } else { 240 }, 7, 9]));
        let preprocessing = Convention::VitTransformers.preprocessing(None).unwrap();
        let mut out = vec![1; 3 * 224 * 224];
        decode(&encode(source, ImageFormat::Png), [3, 224, 224], Some(preprocessing), &mut out).unwrap();
        assert_eq!((out[0], out[224 * 224 - 1], out[224 * 224], out[3 * 224 * 224 - 1]), (10, 240, 7, 9));
    }

    #[test]
    fn a_jpeg_cut_off_anywhere_is_refused() {
        for Decoded { name, file, .. } in fixtures().iter().filter(|image| image.name.ends_with("jpeg")) {
            let file = unhex(file);
            for len in 0..file.len() {
                assert!(decode_raster(&file[..len], 3).is_err(), "{name}, {len} bytes of {}", file.len());
            }
        }
    }

    #[test]
    fn one_damaged_byte_does_no_harm() {
        for Decoded { file, .. } in fixtures() {
            let file = unhex(&file);
            for at in 0..file.len() {
                let mut damaged = file.clone();
                damaged[at] ^= 0xff;
                let _ = decode_raster(&damaged, 3);
            }
        }
    }

    proptest! {
        #[test]
        fn damage_does_no_harm(
            which in any::<prop::sample::Index>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        ) {
            let mut file = unhex(&which.get(&fixtures()).file);
            for (at, byte) in damage {
                *at.get_mut(&mut file) = byte;
            }
            let _ = decode_raster(&file, 3);
        }
    }

    #[test]
    fn a_huge_claim_is_refused_unread() {
        // Width and height of the header, 30,000 each; the header's checksum follows.
        let mut png = encode(colour(), ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
        let crc = crc32(&png[12..29]).to_be_bytes();
        png[29..33].copy_from_slice(&crc);
        let fault = decode_raster(&png, 3).err().unwrap();
        assert!(fault.0.contains("30000x30000"), "{fault:?}");
        png[16..24].copy_from_slice(&[0, 0, 0, 1, 0, 1, 0, 0]);
        let crc = crc32(&png[12..29]).to_be_bytes();
        png[29..33].copy_from_slice(&crc);
        let fault = decode_raster(&png, 3).err().unwrap();
        assert!(fault.0.contains("65536x1 ") && fault.1.contains("sides of at most 65535"), "{fault:?}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    #[rstest]
    #[case::transposed(encode(colour(), ImageFormat::Png), "an image of 2x3 (height, width)", "3x2")]
    #[case::text(b"<html>503</html>".to_vec(), "16 bytes that begin with [3c, 68, 74, 6d]", "a PNG")]
    #[case::nothing(Vec::new(), "0 bytes", "a PNG")]
    #[case::cut_off(encode(colour(), ImageFormat::Png)[..40].to_vec(), "an unreadable image", "a PNG")]
    fn bad_bytes_are_refused(#[case] bytes: Vec<u8>, #[case] found: &str, #[case] expected: &str) {
        let fault = decode(&bytes, [3, 3, 2], None, &mut [0; 18]).unwrap_err();
        assert!(fault.0.starts_with(found), "{fault:?}");
        assert!(fault.1.contains(expected), "{fault:?}");
    }
}
