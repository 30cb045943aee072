//! The zip file that `torch.save` writes since PyTorch 1.6: stored entries, no comment, a directory at the end.
//!
//! The `zip` crate writes such files here, but does not read them: it keeps a record several times as large as the
//! file's own for every entry, and when a directory is damaged it goes looking for another. A checkpoint is read in one strict
//! pass, and its entries are slices of the file.

use std::collections::HashMap;

use flate2::Crc;

/// A ViT-Large has 300 tensors; a training state, three times as many.
const MAX_ENTRIES: u64 = 1 << 17;

/// Entries by name.
pub type Entries<'a> = HashMap<&'a str, &'a [u8]>;

/// Every entry of an archive, its checksum compared.
pub fn entries(file: &[u8]) -> Result<Entries<'_>, String> {
    let (count, directory) = directory(file)?;
    if count > MAX_ENTRIES {
        return Err(format!("its zip directory has {count} entries; expected at most {MAX_ENTRIES}"));
    }
    let mut rest = Reader { bytes: directory };
    let mut entries = Entries::new();
    let mut total = 0;
    for _ in 0..count {
        let entry = Entry::read(&mut rest).ok_or("its zip directory is damaged")?;
        let Ok(name) = std::str::from_utf8(entry.name) else {
            return Err("its zip directory has a name that is no UTF-8".into());
        };
        let damaged = |what: &str| format!("its zip entry {name:?} {what}");
        if entry.method != 0 || entry.size != entry.compressed {
            return Err(damaged("is compressed, which torch.save never does"));
        }
        if entry.flags & 1 != 0 {
            return Err(damaged("is encrypted"));
        }
        let content = entry.content(file).ok_or_else(|| damaged("lies outside of the file"))?;
        // Before the checksums: entries that share bytes would have them read again and again.
        total += content.len();
        if total > file.len() {
            return Err("its zip entries overlap".into());
        }
        let mut crc = Crc::new();
        crc.update(content);
        if crc.sum() != entry.crc {
            return Err(damaged("is damaged: its checksum is wrong"));
        }
        if entries.insert(name, content).is_some() {
            return Err(damaged("occurs twice"));
        }
    }
    Ok(entries)
}

/// How many entries there are, and the bytes of the directory.
fn directory(file: &[u8]) -> Result<(u64, &[u8]), String> {
    let cut_off = || "is cut off or damaged: it begins as a zip file and does not end as one".to_string();
    let at = file.len().checked_sub(22).ok_or_else(cut_off)?;
    let mut end = Reader { bytes: &file[at..] };
    let read = |end: &mut Reader| {
        end.signature(b"PK\x05\x06")?;
        end.skip(6)?;
        Some((u64::from(end.u16()?), u64::from(end.u32()?), u64::from(end.u32()?)))
    };
    let (mut count, mut size, mut start) = read(&mut end).ok_or_else(cut_off)?;
    if count == 0xffff || size == 0xffff_ffff || start == 0xffff_ffff {
        let read = || {
            let mut locator = Reader { bytes: file.get(at.checked_sub(20)?..at)? };
            locator.signature(b"PK\x06\x07")?;
            locator.skip(4)?;
            let mut end = Reader { bytes: file.get(usize::try_from(locator.u64()?).ok()?..)? };
            end.signature(b"PK\x06\x06")?;
            end.skip(28)?;
            Some((end.u64()?, end.u64()?, end.u64()?))
        };
        (count, size, start) = read().ok_or("its zip directory is damaged")?;
    }
    let slice = || {
        let start = usize::try_from(start).ok()?;
        file.get(start..start.checked_add(usize::try_from(size).ok()?)?)
    };
    Ok((count, slice().ok_or("its zip directory lies outside of the file")?))
}

/// An entry of the directory.
struct Entry<'a> {
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u64,
    size: u64,
    header: u64,
    name: &'a [u8],
}

impl<'a> Entry<'a> {
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        reader.signature(b"PK\x01\x02")?;
        reader.skip(4)?;
        let (flags, method) = (reader.u16()?, reader.u16()?);
        reader.skip(4)?;
        let crc = reader.u32()?;
        let (mut compressed, mut size) = (u64::from(reader.u32()?), u64::from(reader.u32()?));
        let (name, extra, comment) = (reader.u16()?, reader.u16()?, reader.u16()?);
        reader.skip(8)?;
        let mut header = u64::from(reader.u32()?);
        let name = reader.take(name.into())?;
        let mut extra = Reader { bytes: reader.take(extra.into())? };
        reader.skip(comment.into())?;
        // Field 1, zip64: whatever did not fit into 32 bits, in this order.
        while let (Some(id), Some(length)) = (extra.u16(), extra.u16()) {
            let mut field = Reader { bytes: extra.take(length.into())? };
            for value in [&mut size, &mut compressed, &mut header] {
                if id == 1 && *value == 0xffff_ffff {
                    *value = field.u64()?;
                }
            }
        }
        Some(Self { flags, method, crc, compressed, size, header, name })
    }

    /// The bytes behind the entry's own header, which repeats the name.
    fn content(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let mut header = Reader { bytes: file.get(usize::try_from(self.header).ok()?..)? };
        header.signature(b"PK\x03\x04")?;
        header.skip(22)?;
        let (name, extra) = (header.u16()?, header.u16()?);
        header.skip(usize::from(name) + usize::from(extra))?;
        header.take(usize::try_from(self.size).ok()?)
    }
}

/// Little-endian numbers, one after another.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(taken)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(drop)
    }

    fn signature(&mut self, expected: &[u8; 4]) -> Option<()> {
        (self.take(4)? == expected).then_some(())
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }
}
