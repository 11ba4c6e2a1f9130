//! `hf:OWNER/NAME[/FILE.gguf][@REVISION]`, as MODEL on the command line.

use std::fmt;

use crate::Error;

/// Where models are fetched from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hub {
    /// huggingface.co, or what `HF_ENDPOINT` names.
    HuggingFace,
    /// modelscope.cn, or what `MODELSCOPE_ENDPOINT` names.
    ModelScope,
}

impl Hub {
    /// What stands before the colon.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf",
            Self::ModelScope => "ms",
        }
    }

    /// The branch that is meant where none is named.
    pub fn default_revision(self) -> &'static str {
        match self {
            Self::HuggingFace => "main",
            Self::ModelScope => "master",
        }
    }
}

/// A model on a hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelName {
    /// Which hub.
    pub hub: Hub,
    /// User or organization.
    pub owner: String,
    /// Repository.
    pub name: String,
    /// The GGUF file meant, a path inside the repository.
    pub file: Option<String>,
    /// Branch, tag or commit.
    pub revision: String,
}

impl ModelName {
    /// Reads a name, `None` where `text` does not begin with a hub's prefix.
    ///
    /// ```
    /// use bitmill_hub::ModelName;
    /// let model = ModelName::parse("hf:Qwen/Qwen2.5-0.5B-Instruct@main").unwrap().unwrap();
    /// assert_eq!((model.owner.as_str(), model.revision.as_str()), ("Qwen", "main"));
    /// assert!(ModelName::parse("Qwen/Qwen2.5-0.5B-Instruct").is_none());
    /// assert!(ModelName::parse("hf:../../etc").unwrap().is_err());
    /// ```
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn parse(text: &str) -> Option<Result<Self, Error>> {
        let hub = [Hub::HuggingFace, Hub::ModelScope]
            .into_iter()
            .find(|hub| text.strip_prefix(hub.prefix()).is_some_and(|rest| rest.starts_with(':')))?;
        let rest = &text[hub.prefix().len() + 1..];
        Some(parts(hub, rest).map_err(|problem| Error::Name { given: text.to_owned(), problem }))
    }

    /// `OWNER/NAME`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.hub.prefix(), self.owner, self.name)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != self.hub.default_revision() {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

fn parts(hub: Hub, text: &str) -> Result<ModelName, &'static str> {
    let (path, revision) = match text.split_once('@') {
        Some((path, revision)) => (path, revision),
        None => (text, hub.default_revision()),
    };
    let mut pieces = path.splitn(3, '/');
    let (Some(owner), Some(name)) = (pieces.next(), pieces.next()) else {
        return Err("a model has an owner and a name");
    };
    for part in [owner, name] {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        // `--` separates owner and name in the cache.
        if part.is_empty() || part.len() > 96 || !part.chars().all(plain) || part.contains("--") {
            return Err("owner and name are letters, digits, `-`, `_` and `.`, without `--`");
        }
        if part.starts_with(['.', '-']) || part.ends_with(['.', '-']) || part.contains("..") {
            return Err("owner and name neither begin nor end with `.` or `-`, nor hold `..`");
        }
    }
    check_path(revision).map_err(|_| "the revision is no branch, tag or commit")?;
    let file = match pieces.next() {
        None => None,
        Some(file) if !file.ends_with(".gguf") => return Err("only a .gguf file can follow the name"),
        Some(file) => {
            check_path(file)?;
            Some(file.to_owned())
        }
    };
    let (owner, name, revision) = (owner.to_owned(), name.to_owned(), revision.to_owned());
    Ok(ModelName { hub, owner, name, file, revision })
}

/// Whether a path from outside, a file's or a revision's, stays below the folder it is joined to.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > 1024 {
        return Err("a name has 1 to 1024 bytes");
    }
    if path.chars().any(|c| c.is_control() || c == '\\') {
        return Err("it holds a control character or a backslash");
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == ".." || part.len() > 255) {
        return Err("it does not stay inside the model's folder");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_are_told_apart() {
        let model =
            ModelName::parse("ms:Qwen/Qwen2.5-7B-GGUF/q4/a-00001-of-00002.gguf@v1/x").unwrap().unwrap();
        assert_eq!(model.hub, Hub::ModelScope);
        assert_eq!(model.repository(), "Qwen/Qwen2.5-7B-GGUF");
        assert_eq!(model.file.as_deref(), Some("q4/a-00001-of-00002.gguf"));
        assert_eq!(model.revision, "v1/x");
        assert_eq!(model.to_string(), "ms:Qwen/Qwen2.5-7B-GGUF/q4/a-00001-of-00002.gguf@v1/x");
        assert_eq!(ModelName::parse("ms:a/b").unwrap().unwrap().revision, "master");
        assert_eq!(ModelName::parse("hf:a/b").unwrap().unwrap().to_string(), "hf:a/b");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [
            "hf:",
            "hf:a",
            "hf:a/",
            "hf:/b",
            "hf:../b",
            "hf:a/..",
            "hf:a/b/c.bin",
            "hf:a/b/../c.gguf",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a/b@a//b",
            "hf:a--x/b",
            "hf:a b/c",
            "hf:a/b/x\u{7}.gguf",
            "hf:a/b@x\\y",
        ] {
            assert!(matches!(ModelName::parse(bad), Some(Err(Error::Name { .. }))), "{bad}");
        }
        assert!(ModelName::parse("hfx:a/b").is_none());
    }
}
