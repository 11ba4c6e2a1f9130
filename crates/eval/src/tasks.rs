//! Multiple-choice accuracy.

use bitmill_kernels::Compute;
use bitmill_model::{Cache, Model, Sequence, Want};
use bitmill_report::TaskScore;
use bitmill_tensor::Matrix;
use bitmill_text::{Task, Tokenizer};

use crate::walk::{BATCH_TOKENS, rows_at_once};
use crate::{Error, Progress, mcnemar_p};

/// A model's answer to one item.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Of each choice: the sum of its tokens' log-probabilities after the context.
    pub scores: Vec<f64>,
    /// The choice with the largest score, the first of equals.
    pub chosen: usize,
    /// The same with each score divided by its choice's length in bytes of UTF-8.
    pub chosen_norm: usize,
    /// The right choice.
    pub right: usize,
}

/// A model's answers to a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskAnswers {
    /// The task's name.
    pub name: String,
    /// One for each item.
    pub answers: Vec<Answer>,
}

impl TaskAnswers {
    /// Fraction of items answered right.
    pub fn accuracy(&self) -> f64 {
        self.fraction(|answer| answer.chosen)
    }

    /// Fraction of items answered right when scores are divided by the choices' lengths.
    pub fn accuracy_norm(&self) -> f64 {
        self.fraction(|answer| answer.chosen_norm)
    }

    fn fraction(&self, chosen: impl Fn(&Answer) -> usize) -> f64 {
        let right = self.answers.iter().filter(|answer| chosen(answer) == answer.right).count();
        right as f64 / self.answers.len() as f64
    }

    /// The record; with the dense model's answers, also which way answers flipped.
    ///
    /// # Errors
    /// [`Error::OtherItems`] if the dense model answered other items.
    pub fn score(&self, dense: Option<&Self>) -> Result<TaskScore, Error> {
        let plain = TaskScore {
            accuracy: self.accuracy(),
            accuracy_norm: self.accuracy_norm(),
            n: self.answers.len(),
            gained: None,
            lost: None,
            mcnemar_p: None,
        };
        let Some(dense) = dense else { return Ok(plain) };
        let pairs = || self.answers.iter().zip(&dense.answers);
        if self.answers.len() != dense.answers.len()
            || pairs().any(|(ours, theirs)| ours.right != theirs.right)
        {
            return Err(Error::OtherItems {
                task: self.name.clone(),
                dense: dense.answers.len(),
                found: self.answers.len(),
            });
        }
        let right = |answer: &Answer| answer.chosen == answer.right;
        let gained = pairs().filter(|(ours, theirs)| right(ours) && !right(theirs)).count();
        let lost = pairs().filter(|(ours, theirs)| !right(ours) && right(theirs)).count();
        Ok(TaskScore {
            gained: Some(gained),
            lost: Some(lost),
            mcnemar_p: Some(mcnemar_p(gained, lost)),
            ..plain
        })
    }
}

/// Answers the first `items` items of each task (`None`: all).
///
/// Context and choice are encoded apart. A context begins with BOS where the model asks for it; an empty one is the
/// BOS token alone, or EOS where there is no BOS.
///
/// # Errors
/// [`Error::Item`] naming the item that the model cannot run, [`Error::NoTokens`], [`Error::NotFiniteInItem`].
pub fn tasks(
    model: &Model,
    compute: &Compute,
    tokenizer: &Tokenizer,
    tasks: &[Task],
    items: Option<usize>,
    progress: Progress<'_>,
) -> Result<Vec<TaskAnswers>, Error> {
    let kept = |task: &Task| items.map_or(task.items.len(), |items| items.min(task.items.len()));
    let total = tasks.iter().map(kept).sum();
    let mut done = 0;
    let mut runner = Runner::new(model, compute);
    tasks
        .iter()
        .map(|task| {
            let questions = questions(model, tokenizer, task, kept(task))?;
            let mut answers = Vec::with_capacity(questions.len());
            while answers.len() < questions.len() {
                let batch = runner.batch(&questions[answers.len()..]);
                let scores = runner.scores(&task.name, answers.len(), batch)?;
                for (question, scores) in batch.iter().zip(scores) {
                    answers.push(question.answer(scores));
                }
                progress(done + answers.len(), total);
            }
            done += answers.len();
            Ok(TaskAnswers { name: task.name.clone(), answers })
        })
        .collect()
}

/// An item in tokens.
struct Question {
    context: Vec<u32>,
    choices: Vec<Vec<u32>>,
    /// Bytes of each choice.
    bytes: Vec<usize>,
    right: usize,
}

fn questions(
    model: &Model,
    tokenizer: &Tokenizer,
    task: &Task,
    items: usize,
) -> Result<Vec<Question>, Error> {
    let config = model.config();
    let stand_in = tokenizer.bos().or(config.bos).or(tokenizer.eos()).or(config.eos.first().copied());
    let question = |(index, item): (usize, &bitmill_text::Item)| {
        let nothing = |part: String| Error::NoTokens { task: task.name.clone(), item: index, part };
        let mut context = tokenizer.encode_document(&item.context)?;
        if context.is_empty() {
            context.push(stand_in.ok_or_else(|| nothing("the context".to_owned()))?);
        }
        let choices = item.choices.iter().map(|choice| tokenizer.encode(choice));
        let choices = choices.collect::<Result<Vec<_>, _>>()?;
        if let Some(empty) = choices.iter().position(Vec::is_empty) {
            return Err(nothing(format!("choice {empty}")));
        }
        if let Some(&token) = choices.iter().flatten().find(|&&token| token as usize >= config.vocab_size) {
            let source =
                Box::new(bitmill_model::Error::TokenOutOfRange { token, vocab_size: config.vocab_size });
            return Err(Error::Item { task: task.name.clone(), item: index, source });
        }
        let bytes = item.choices.iter().map(String::len).collect();
        Ok(Question { context, choices, bytes, right: item.answer })
    };
    task.items.iter().take(items).enumerate().map(question).collect()
}

impl Question {
    fn answer(&self, scores: Vec<f64>) -> Answer {
        let by_length: Vec<f64> =
            scores.iter().zip(&self.bytes).map(|(score, &bytes)| score / bytes as f64).collect();
        Answer { chosen: largest(&scores), chosen_norm: largest(&by_length), right: self.right, scores }
    }

    /// Most rows of logits that one of the choices takes.
    fn rows(&self) -> usize {
        self.choices.iter().map(|choice| choice.len() - 1).max().unwrap_or(0).max(1)
    }
}

/// The largest score's index, the first of equals.
fn largest(scores: &[f64]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

/// Runs questions, with the caches and buffers that one batch leaves to the next.
struct Runner<'a> {
    model: &'a Model,
    compute: &'a Compute,
    caches: Vec<Cache>,
    logits: Matrix,
    targets: Vec<u32>,
    nlls: Vec<f64>,
}

impl<'a> Runner<'a> {
    fn new(model: &'a Model, compute: &'a Compute) -> Self {
        let (caches, logits) = (Vec::new(), Matrix::default());
        Self { model, compute, caches, logits, targets: Vec::new(), nlls: Vec::new() }
    }

    /// As many of the questions as one pass may take, at least one.
    fn batch<'q>(&self, questions: &'q [Question]) -> &'q [Question] {
        let limit = rows_at_once(self.model.config().vocab_size);
        let (mut tokens, mut rows) = (0, 0);
        let taken = questions.iter().take_while(|question| {
            tokens += question.context.len();
            rows += question.rows();
            tokens <= BATCH_TOKENS && rows <= limit
        });
        &questions[..taken.count().max(1).min(questions.len())]
    }

    /// The scores of every choice of the questions: contexts first, all in one pass; then the first choices after
    /// their contexts' caches, the second choices, and so on. `first` is the first question's number, for errors.
    fn scores(&mut self, task: &str, first: usize, questions: &[Question]) -> Result<Vec<Vec<f64>>, Error> {
        let mut scores: Vec<Vec<f64>> =
            questions.iter().map(|question| vec![0.0; question.choices.len()]).collect();
        while self.caches.len() < questions.len() {
            self.caches.push(self.model.new_cache());
        }
        self.caches.iter_mut().for_each(|cache| cache.truncate(0));

        let contexts = questions.iter().map(|question| question.context.as_slice());
        self.run(task, first, contexts.enumerate().collect(), Want::Last)?;
        self.targets.clear();
        self.targets.extend(questions.iter().map(|question| question.choices[0][0]));
        self.compute.cross_entropy(&self.logits, &self.targets, &mut self.nlls);
        for (index, question) in questions.iter().enumerate() {
            let row = self.logits.row(index);
            // The other choices' first tokens share the row's normalizer.
            let normalizer = self.nlls[index] + f64::from(row[self.targets[index] as usize]);
            for (score, choice) in scores[index].iter_mut().zip(&question.choices) {
                *score = f64::from(row[choice[0] as usize]) - normalizer;
            }
        }

        let most = questions.iter().map(|question| question.choices.len()).max().unwrap_or(0);
        for choice in 0..most {
            let tails: Vec<(usize, &[u32])> = questions
                .iter()
                .enumerate()
                .filter_map(|(index, question)| Some((index, question.choices.get(choice)?.as_slice())))
                .filter(|(_, tokens)| tokens.len() > 1)
                .collect();
            if tails.is_empty() {
                continue;
            }
            let inputs = tails.iter().map(|(index, tokens)| (*index, &tokens[..tokens.len() - 1])).collect();
            self.run(task, first, inputs, Want::All)?;
            self.targets.clear();
            self.targets.extend(tails.iter().flat_map(|(_, tokens)| &tokens[1..]));
            self.compute.cross_entropy(&self.logits, &self.targets, &mut self.nlls);
            let mut nlls = self.nlls.as_slice();
            for (index, tokens) in tails {
                let (own, rest) = nlls.split_at(tokens.len() - 1);
                if let Some(score) = scores[index].get_mut(choice) {
                    *score -= own.iter().sum::<f64>();
                }
                nlls = rest;
                self.caches[index].truncate(questions[index].context.len());
            }
        }
        match scores.iter().position(|scores| scores.iter().any(|score| !score.is_finite())) {
            Some(index) => Err(Error::NotFiniteInItem { task: task.to_owned(), item: first + index }),
            None => Ok(scores),
        }
    }

    /// Runs the tokens of some questions after what their caches hold.
    fn run(
        &mut self,
        task: &str,
        first: usize,
        inputs: Vec<(usize, &[u32])>,
        want: Want,
    ) -> Result<(), Error> {
        let mut inputs_left = inputs.iter().peekable();
        let mut batch = Vec::with_capacity(inputs.len());
        for (index, cache) in self.caches.iter_mut().enumerate() {
            if let Some((_, tokens)) = inputs_left.next_if(|(input, _)| *input == index) {
                batch.push(Sequence { tokens, cache, want });
            }
        }
        let failed = self.model.forward(self.compute, &mut batch, &mut self.logits);
        failed.map_err(|source| {
            // The model does not say whose tokens it refused: the question that asks for most is at fault, or first.
            let longest = inputs.iter().rev().max_by_key(|(_, tokens)| tokens.len());
            let item = first + longest.map_or(0, |(index, _)| *index);
            Error::Item { task: task.to_owned(), item, source: Box::new(source) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(chosen: &[usize]) -> TaskAnswers {
        let answer = |&chosen: &usize| Answer { scores: vec![0.0; 2], chosen, chosen_norm: 0, right: 1 };
        TaskAnswers { name: "t".to_owned(), answers: chosen.iter().map(answer).collect() }
    }

    #[test]
    fn flips_are_counted_in_each_direction() {
        let (dense, ours) = (answers(&[1, 1, 1, 1, 0, 0]), answers(&[1, 0, 0, 0, 1, 0]));
        let score = ours.score(Some(&dense)).unwrap();
        assert_eq!((score.accuracy, score.accuracy_norm, score.n), (2.0 / 6.0, 0.0, 6));
        assert_eq!((score.gained, score.lost), (Some(1), Some(3)));
        // 2 · (1 + 4) / 2⁴
        assert!((score.mcnemar_p.unwrap() - 0.625).abs() < 1e-12);
        assert_eq!(ours.score(None).unwrap().mcnemar_p, None);
    }

    #[test]
    fn refuses_answers_to_other_items() {
        assert!(matches!(
            answers(&[1]).score(Some(&answers(&[1, 1]))),
            Err(Error::OtherItems { dense: 2, .. })
        ));
    }

    #[test]
    fn of_equal_scores_the_first_is_chosen() {
        assert_eq!(largest(&[-3.0, -1.0, -1.0]), 1);
    }
}
