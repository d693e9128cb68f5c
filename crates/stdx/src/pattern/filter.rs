//! The filter of a directory walk by include and exclude lists, with the pruning of subtrees in which nothing can be
//! wanted. A directory is taken when it matches, or when something below it is.

use super::{MatchInfo, PatternError, PatternMatcher};

/// Include and exclude lists, compiled. An empty include list includes everything.
#[derive(Debug, Clone, Default)]
pub struct PathFilter {
    include: PatternMatcher,
    exclude: PatternMatcher,
    prune_includes: bool,
    prune_excludes: bool,
}

/// What to do with a path of the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Take it; `parents` are the directories above it that were passed over so far and must now be taken first.
    Take {
        /// Topmost first.
        parents: Vec<Vec<u8>>,
    },
    /// Leave it, but look below it.
    Pass,
    /// Leave it and all that is below it.
    Prune,
}

/// The state of one walk.
#[derive(Debug)]
pub struct Walk<'a> {
    filter: &'a PathFilter,
    dirs: Vec<Visited>,
}

#[derive(Debug)]
struct Visited {
    path: Vec<u8>,
    include: MatchInfo,
    exclude: MatchInfo,
    taken: bool,
}

impl PathFilter {
    /// Compiles both lists.
    ///
    /// # Errors
    /// A malformed pattern.
    pub fn new<S: AsRef<[u8]>, T: AsRef<[u8]>>(
        include: impl IntoIterator<Item = S>,
        exclude: impl IntoIterator<Item = T>,
    ) -> Result<Self, PatternError> {
        let include = PatternMatcher::new(include)?;
        let exclude = PatternMatcher::new(exclude)?;
        let prune_includes = include.patterns().all(|(text, negated)| negated || is_plain(text));
        let prune_excludes = exclude.patterns().all(|(text, negated)| !negated || is_plain(text));
        Ok(Self { include, exclude, prune_includes, prune_excludes })
    }

    /// Tells whether everything is taken.
    pub fn is_trivial(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Tells whether `path` alone is wanted; directories above it are tested here.
    pub fn wants(&self, path: &[u8]) -> bool {
        (self.include.is_empty() || self.include.matches(path)) && !self.exclude.matches(path)
    }

    /// Starts a walk, in which each directory comes before what is in it.
    pub fn walk(&self) -> Walk<'_> {
        Walk { filter: self, dirs: Vec::new() }
    }
}

impl Walk<'_> {
    /// Judges the next path of the walk.
    pub fn visit(&mut self, path: &[u8], is_dir: bool) -> Verdict {
        while self.dirs.last().is_some_and(|dir| !is_below(path, &dir.path)) {
            self.dirs.pop();
        }
        let nothing = MatchInfo::default();
        let (above_include, above_exclude) =
            self.dirs.last().map_or((&nothing, &nothing), |dir| (&dir.include, &dir.exclude));
        let mut wanted = true;
        let mut include = MatchInfo::default();
        if !self.filter.include.is_empty() {
            (wanted, include) = self.filter.include.matches_below(path, above_include);
            if !wanted && is_dir && self.filter.prune_includes && !leads_to(&self.filter.include, false, path) {
                return Verdict::Prune;
            }
        }
        let mut exclude = MatchInfo::default();
        if !self.filter.exclude.is_empty() {
            let (out, info) = self.filter.exclude.matches_below(path, above_exclude);
            exclude = info;
            if out && is_dir && self.filter.prune_excludes && !leads_to(&self.filter.exclude, true, path) {
                return Verdict::Prune;
            }
            wanted &= !out;
        }
        let parents = if wanted { self.take_parents() } else { Vec::new() };
        if is_dir {
            self.dirs.push(Visited { path: path.to_vec(), include, exclude, taken: wanted });
        }
        if wanted { Verdict::Take { parents } } else { Verdict::Pass }
    }

    fn take_parents(&mut self) -> Vec<Vec<u8>> {
        let mut parents = Vec::new();
        for dir in self.dirs.iter_mut().filter(|dir| !dir.taken) {
            dir.taken = true;
            parents.push(dir.path.clone());
        }
        parents
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn without_trailing_glob(text: &[u8]) -> &[u8] {
    let text = text.strip_suffix(b"/**").unwrap_or(text);
    text.strip_suffix(b"/*").unwrap_or(text)
}

fn is_plain(text: &[u8]) -> bool {
    !without_trailing_glob(text).iter().any(|b| b"*[]?^\\".contains(b))
}

/// Tells whether a pattern with that negation could match something below the directory `dir`.
fn leads_to(matcher: &PatternMatcher, negated: bool, dir: &[u8]) -> bool {
    matcher.patterns().filter(|&(_, n)| n == negated).any(|(text, _)| {
        dir.is_empty() || is_below(without_trailing_glob(text), dir) || without_trailing_glob(text) == dir
    })
}
