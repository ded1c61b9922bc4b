//! How many members a zip archive says that it has, before anything is made of them.

use crate::checkpoint::header::most_in;

/// The end of an archive and the longest comment after it.
const TAIL: usize = 22 + 65_535;
/// Where 64-bit numbers are to be found, just before the end.
const LOCATOR: usize = 20;

/// # Errors
/// In words, if there are more members than a checkpoint of this size has.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let members = promised(bytes);
    if members > most_in(bytes.len()) as u64 {
        return Err(format!(
            "a zip archive of {members} members in {} bytes, so no checkpoint of PyTorch's",
            bytes.len()
        ));
    }
    Ok(())
}

/// The largest number that any end of an archive gives: which of several is the true one, readers do not agree.
fn promised(bytes: &[u8]) -> u64 {
    let tail = bytes.len().saturating_sub(TAIL);
    let ends = (tail..bytes.len()).filter(|at| bytes[*at..].starts_with(b"PK\x05\x06"));
    ends.map(|at| match number::<2>(bytes, at + 10) {
        0xffff => at
            .checked_sub(LOCATOR)
            .filter(|at| bytes[*at..].starts_with(b"PK\x06\x07"))
            .map(|at| number::<8>(bytes, at + 8) as usize)
            .filter(|at| bytes.get(*at..).is_some_and(|end| end.starts_with(b"PK\x06\x06")))
            .map_or(0xffff, |at| number::<8>(bytes, at.saturating_add(32))),
        members => members,
    })
    .max()
    .unwrap_or(0)
}

/// The number of `N` bytes at a place, 0 past the end.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    if let Some(found) = bytes.get(at..).and_then(|rest| rest.get(..N)) {
        number[..N].copy_from_slice(found);
    }
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: usize) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for i in 0..members {
            archive.start_file(i.to_string(), zip::write::SimpleFileOptions::default()).unwrap();
        }
        archive.set_comment("a comment").unwrap();
        archive.finish().unwrap().into_inner()
    }

    #[test]
    fn members_are_counted_without_making_anything_of_them() {
        for members in [0, 3, 65_534, 65_535, 70_000] {
            assert_eq!(promised(&archive(members)), members as u64);
        }
        assert_eq!(check(&archive(4_096)), Ok(()));
        let many = archive(8_192);
        assert!(check(&many).unwrap_err().contains("8192 members"));
        // as many, but of a kibibyte each
        assert_eq!(check(&[vec![0; 4_096 * 1_024], many].concat()), Ok(()));
        assert_eq!((promised(b""), promised(b"PK\x05\x06"), promised(&[0xff; 100])), (0, 0, 0));
    }
}
