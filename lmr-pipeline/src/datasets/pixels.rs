//! One encoded image (PNG or JPEG) to bytes in CHW order.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

/// More than any honest image within the descriptor's limits needs while it is decoded.
const MAX_ALLOC: u64 = 256 << 20;

/// What is wrong with an image: found and expected.
pub(super) type Fault = (String, String);

/// Decodes `bytes` into `out`, row by row and channel by channel; converts between greyscale and colour as needed.
///
/// The size is compared before a pixel is decoded, so a small file cannot claim a huge image.
pub(super) fn decode(bytes: &[u8], [channels, height, width]: [usize; 3], out: &mut [u8]) -> Result<(), Fault> {
    let unreadable = |error: image::ImageError| (format!("an unreadable image ({error})"), "a PNG or JPEG".to_owned());
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| unreadable(image::ImageError::IoError(error)))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        let start = &bytes[..bytes.len().min(4)];
        return Err((format!("{} bytes that begin with {start:02x?}", bytes.len()), "a PNG or JPEG".to_owned()));
    }
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(unreadable)?;
    let (found_width, found_height) = decoder.dimensions();
    if (found_height as usize, found_width as usize) != (height, width) {
        return Err((format!("an image of {found_height}x{found_width} (height, width)"), format!("{height}x{width}")));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    match channels {
        1 if !image.color().has_color() => out.copy_from_slice(image.into_luma8().as_raw()),
        1 => {
            for (out, pixel) in out.iter_mut().zip(image.into_rgb8().pixels()) {
                *out = luma(pixel.0);
            }
        }
        _ => {
            // Stored row by row with the channels of a pixel together; wanted row by row, one channel after the other.
            let (red, rest) = out.split_at_mut(height * width);
            let (green, blue) = rest.split_at_mut(height * width);
            for (index, pixel) in image.into_rgb8().pixels().enumerate() {
                [red[index], green[index], blue[index]] = pixel.0;
            }
        }
    }
    Ok(())
}

/// ITU-R 601 luma in 16-bit fixed point, the weights torchvision and Pillow use.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use rstest::rstest;

    use super::*;

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Two rows, three columns; red counts columns, green counts rows.
    fn colour() -> RgbImage {
        RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 10, y as u8 * 100, 7]))
    }

    #[test]
    fn rows_stay_rows() {
        let mut out = [1; 18];
        decode(&encode(colour(), ImageFormat::Png), [3, 2, 3], &mut out).unwrap();
        assert_eq!(out, [0, 10, 20, 0, 10, 20, 0, 0, 0, 100, 100, 100, 7, 7, 7, 7, 7, 7]);
    }

    #[test]
    fn colour_and_grey_convert() {
        let mut grey = [0; 6];
        decode(&encode(colour(), ImageFormat::Png), [1, 2, 3], &mut grey).unwrap();
        // 0.299 r + 0.587 g + 0.114 b, rounded.
        assert_eq!(grey, [1, 4, 7, 59, 62, 65]);
        let source = GrayImage::from_fn(3, 2, |x, y| Luma([(y * 3 + x) as u8]));
        let mut rgb = [9; 18];
        decode(&encode(source, ImageFormat::Png), [3, 2, 3], &mut rgb).unwrap();
        assert_eq!(rgb[..6], [0, 1, 2, 3, 4, 5]);
        assert_eq!(rgb[12..], [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn jpeg_is_upright() {
        // Dark above, bright below, in blocks of the size JPEG works with.
        let source = RgbImage::from_fn(8, 16, |_, y| Rgb([if y < 8 { 10 } else { 240 }; 3]));
        let mut out = [0; 3 * 16 * 8];
        decode(&encode(source, ImageFormat::Jpeg), [3, 16, 8], &mut out).unwrap();
        assert!(out[..64].iter().all(|&v| v < 30) && out[64..128].iter().all(|&v| v > 220));
    }

    #[rstest]
    #[case::transposed(encode(colour(), ImageFormat::Png), "an image of 2x3 (height, width)", "3x2")]
    #[case::text(b"<html>503</html>".to_vec(), "16 bytes that begin with [3c, 68, 74, 6d]", "a PNG or JPEG")]
    #[case::nothing(Vec::new(), "0 bytes", "a PNG or JPEG")]
    #[case::cut_off(encode(colour(), ImageFormat::Png)[..40].to_vec(), "an unreadable image", "a PNG or JPEG")]
    fn bad_bytes_are_refused(#[case] bytes: Vec<u8>, #[case] found: &str, #[case] expected: &str) {
        let fault = decode(&bytes, [3, 3, 2], &mut [0; 18]).unwrap_err();
        assert!(fault.0.starts_with(found), "{fault:?}");
        assert_eq!(fault.1, expected);
    }
}
