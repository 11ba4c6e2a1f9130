//! Which files of a repository make the model.

use wildmatch::WildMatch;

use crate::{Error, ModelName, RemoteFile};

/// Beside weights and what ends in `.json` or `.jinja`.
const TOKENIZERS: [&str; 4] = ["tokenizer.model", "merges.txt", "vocab.txt", "*.tiktoken"];
/// Weights as Python pickles: reading one runs the code in it.
const PICKLES: [&str; 6] = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.pickle"];

/// The files to fetch: the `include` patterns' where there are any, else the named GGUF file's, else the folder's
/// (safetensors, config, tokenizer), else the only GGUF file's.
pub(crate) fn select<'a>(
    model: &ModelName,
    files: &'a [RemoteFile],
    include: &[String],
) -> Result<Vec<&'a RemoteFile>, Error> {
    let name = model.to_string();
    if !include.is_empty() {
        return matching(&name, files, include);
    }
    if let Some(file) = &model.file {
        return split_parts(&name, files, file);
    }
    let top = || files.iter().filter(|file| !file.path.contains('/'));
    let weights = |pattern: &str| {
        let pattern = WildMatch::new(pattern);
        top().filter(|file| pattern.matches(&file.path)).collect::<Vec<_>>()
    };
    let safetensors = match weights("model*.safetensors") {
        // A second copy under another name (`consolidated*`, as Mistral's) is left out.
        named if !named.is_empty() => named,
        _ => weights("*.safetensors"),
    };
    if !safetensors.is_empty() {
        let beside = top().filter(|file| {
            let path = file.path.as_str();
            path.ends_with(".json") || path.ends_with(".jinja") || is_any(path, &TOKENIZERS)
        });
        return Ok(safetensors.into_iter().chain(beside).collect());
    }
    let gguf: Vec<&str> =
        files.iter().map(|file| file.path.as_str()).filter(|path| path.ends_with(".gguf")).collect();
    let firsts: Vec<&str> =
        gguf.iter().copied().filter(|path| part(path).is_none_or(|(_, n, _)| n == 1)).collect();
    match firsts[..] {
        [one] => split_parts(&name, files, one),
        [] => {
            let mut kinds: Vec<String> = PICKLES
                .iter()
                .filter(|pattern| files.iter().any(|file| is_any(&file.path, &[pattern])))
                .map(|pattern| format!("`{}`", &pattern[1..]))
                .collect();
            kinds.sort_unstable();
            Err(match kinds.is_empty() {
                true => Error::NoWeights { model: name },
                false => Error::OnlyPickles { model: name, kinds: kinds.join(", ") },
            })
        }
        _ => Err(Error::SeveralGguf { model: name, names: firsts.into_iter().map(str::to_owned).collect() }),
    }
}

fn matching<'a>(
    model: &str,
    files: &'a [RemoteFile],
    include: &[String],
) -> Result<Vec<&'a RemoteFile>, Error> {
    let mut chosen = vec![false; files.len()];
    for text in include {
        let pattern = WildMatch::new(text);
        let mut any = false;
        for (file, chosen) in files.iter().zip(&mut chosen) {
            if pattern.matches(&file.path) {
                if is_any(&file.path, &PICKLES) {
                    let (model, pattern, file) = (model.to_owned(), text.clone(), file.path.clone());
                    return Err(Error::PickleAsked { model, pattern, file });
                }
                (*chosen, any) = (true, true);
            }
        }
        if !any {
            return Err(no_match(model, text, files));
        }
    }
    Ok(files.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(file, _)| file).collect())
}

/// `file`, and with the first part of a split GGUF file its others.
fn split_parts<'a>(model: &str, files: &'a [RemoteFile], file: &str) -> Result<Vec<&'a RemoteFile>, Error> {
    let find =
        |path: &str| files.iter().find(|file| file.path == path).ok_or_else(|| no_match(model, path, files));
    match part(file) {
        Some((stem, _, count)) => {
            (1..=count).map(|n| find(&format!("{stem}-{n:05}-of-{count:05}.gguf"))).collect()
        }
        None => Ok(vec![find(file)?]),
    }
}

fn no_match(model: &str, pattern: &str, files: &[RemoteFile]) -> Error {
    let names = files.iter().map(|file| file.path.clone()).collect();
    Error::NoMatch { model: model.to_owned(), pattern: pattern.to_owned(), names }
}

/// Stem, number and count of `STEM-00001-of-00003.gguf`.
pub(crate) fn part(path: &str) -> Option<(&str, u32, u32)> {
    let (stem, rest) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, n) = stem.rsplit_once('-')?;
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
    let (n, count) = (number(n)?, number(rest)?);
    (n >= 1 && n <= count).then_some((stem, n, count))
}

fn is_any(path: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| WildMatch::new(pattern).matches(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, files: &[&str], include: &[&str]) -> Result<Vec<String>, Error> {
        let model = ModelName::parse(name).unwrap().unwrap();
        let files: Vec<RemoteFile> =
            files.iter().map(|path| RemoteFile { path: (*path).to_owned(), size: 1, hash: None }).collect();
        let include: Vec<String> = include.iter().map(|text| (*text).to_owned()).collect();
        Ok(select(&model, &files, &include)?.into_iter().map(|file| file.path.clone()).collect())
    }

    #[test]
    fn a_folder_is_weights_config_and_tokenizer() {
        let files = [
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "qwen.tiktoken",
            "tekken.json",
            "chat_template.jinja",
            "onnx/model.safetensors",
            "modeling_x.py",
            "x.gguf",
        ];
        assert_eq!(
            chosen("hf:a/b", &files, &[]).unwrap(),
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "config.json",
                "model.safetensors.index.json",
                "qwen.tiktoken",
                "tekken.json",
                "chat_template.jinja",
            ]
        );
    }

    #[test]
    fn gguf_files_are_named_unless_there_is_one() {
        assert_eq!(chosen("hf:a/b", &["x.gguf", "README.md"], &[]).unwrap(), ["x.gguf"]);
        let split = ["q/x-00001-of-00002.gguf", "q/x-00002-of-00002.gguf"];
        assert_eq!(chosen("hf:a/b", &split, &[]).unwrap(), split);
        assert_eq!(chosen("hf:a/b/q/x-00001-of-00002.gguf", &split, &[]).unwrap(), split);
        assert!(matches!(chosen("hf:a/b", &split[..1], &[]), Err(Error::NoMatch { .. })));
        let several = chosen("hf:a/b", &["x.gguf", "y.gguf"], &[]).unwrap_err();
        assert!(several.hint().unwrap().contains("hf:a/b/x.gguf, y.gguf"));
        assert_eq!(chosen("hf:a/b/y.gguf", &["x.gguf", "y.gguf"], &[]).unwrap(), ["y.gguf"]);
        assert_eq!(chosen("hf:a/b", &["x.gguf", "y.gguf"], &["y*"]).unwrap(), ["y.gguf"]);
        assert!(matches!(chosen("hf:a/b/z.gguf", &["x.gguf"], &[]), Err(Error::NoMatch { .. })));
    }

    #[test]
    fn pickles_are_never_fetched() {
        let only = chosen("hf:a/b", &["config.json", "pytorch_model-00001-of-00002.bin"], &[]).unwrap_err();
        assert!(matches!(&only, Error::OnlyPickles { kinds, .. } if kinds == "`.bin`"), "{only}");
        assert!(only.hint().unwrap().contains("safe_serialization"));
        assert!(matches!(chosen("hf:a/b", &["x.bin", "y.json"], &["*"]), Err(Error::PickleAsked { .. })));
        assert!(matches!(chosen("hf:a/b", &["README.md"], &[]), Err(Error::NoWeights { .. })));
    }
}
