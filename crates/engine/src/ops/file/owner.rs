//! Owners of what file actions make: numbers as they are, names looked up in a file system's own files.

use kiln_llb::op::{FileInput, Owner, UserSpec};
use kiln_store::ImmutableRef;

use super::simple::Ids;
use crate::build::Progress;
use crate::error::EngineError;
use crate::inspect;

/// Returns user and group for `owner`; none when it names neither.
///
/// A user without a group brings its own: the number itself, or the primary group of the name. A name that is in no
/// file is root, as in BuildKit, with a warning that BuildKit does not give.
///
/// # Errors
/// The file system to look in cannot be read.
pub fn resolve(
    owner: &Owner,
    lookup: &dyn Fn(FileInput) -> Result<ImmutableRef, EngineError>,
    progress: &Progress,
) -> Result<Option<Ids>, EngineError> {
    if owner.is_unset() {
        return Ok(None);
    }
    let mut ids = (0, 0);
    match &owner.user {
        Some(UserSpec::Id(id)) => ids = (*id, *id),
        Some(UserSpec::Name { name, input }) => match find(&lookup(*input)?, "/etc/passwd", name, &[2, 3])? {
            Some(fields) => ids = (fields[0], fields[1]),
            None => progress.warn(&format!("user `{name}` is not in /etc/passwd of the image: root is used")),
        },
        None => {}
    }
    match &owner.group {
        Some(UserSpec::Id(id)) => ids.1 = *id,
        Some(UserSpec::Name { name, input }) => match find(&lookup(*input)?, "/etc/group", name, &[2])? {
            Some(fields) => ids.1 = fields[0],
            None => progress.warn(&format!("group `{name}` is not in /etc/group of the image: root is used")),
        },
        None => {}
    }
    Ok(Some(ids))
}

/// Returns the numbers in these columns of the line that begins with `name`.
fn find(reference: &ImmutableRef, file: &str, name: &str, columns: &[usize]) -> Result<Option<Vec<u32>>, EngineError> {
    let text = match inspect::read_now(reference, file, None) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.class() == kiln_stdx::ErrorClass::UserInput => return Ok(None),
        Err(e) => return Err(e),
    };
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.first() != Some(&name) {
            continue;
        }
        let numbers: Option<Vec<u32>> = columns.iter().map(|&c| fields.get(c)?.trim().parse().ok()).collect();
        if let Some(numbers) = numbers {
            return Ok(Some(numbers));
        }
    }
    Ok(None)
}
