//! The few shapes that the plots are made of. Colours are classes, which the page's style sheet fills in: the same
//! drawing serves light, dark and print.

use super::markup::escape;

/// A drawing under construction; lengths are in pixels of its own viewBox.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text's position lies in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// The shape of a point, so that colour is never the only difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Circle,
    Square,
    Diamond,
    Triangle,
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub(crate) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(short);
        self.body.push_str(&format!(
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>\n"
        ));
    }

    /// A rectangle with what a pointer resting on it shows.
    pub(crate) fn rect(&mut self, class: &str, corner: (f64, f64), size: (f64, f64), title: &str) {
        let [x, y, width, height] = [corner.0, corner.1, size.0, size.1].map(short);
        self.body.push_str(&format!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"><title>{}</title></rect>\n",
            escape(title)
        ));
    }

    pub(crate) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.body.push_str(&format!(
            "<text class=\"{class}\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>\n",
            short(at.0),
            short(at.1),
            escape(text)
        ));
    }

    /// A point with what a pointer resting on it shows.
    pub(crate) fn mark(&mut self, class: &str, mark: Mark, (x, y): (f64, f64), title: &str) {
        let outline = |corners: &[(f64, f64)]| {
            let corners: Vec<String> =
                corners.iter().map(|(dx, dy)| format!("{},{}", short(x + dx), short(y + dy))).collect();
            format!("<polygon class=\"{class}\" points=\"{}\">", corners.join(" "))
        };
        // Of about the same area each.
        let (open, close) = match mark {
            Mark::Circle => (
                format!("<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"4.6\">", short(x), short(y)),
                "circle",
            ),
            Mark::Square => (outline(&[(-4.1, -4.1), (4.1, -4.1), (4.1, 4.1), (-4.1, 4.1)]), "polygon"),
            Mark::Diamond => (outline(&[(0.0, -5.8), (5.8, 0.0), (0.0, 5.8), (-5.8, 0.0)]), "polygon"),
            Mark::Triangle => (outline(&[(0.0, -5.6), (5.2, 3.9), (-5.2, 3.9)]), "polygon"),
        };
        self.body.push_str(&format!("{open}<title>{}</title></{close}>\n", escape(title)));
    }

    /// The drawing with its name and what it shows, for those who cannot see it; `id` must be unique on the page.
    pub(crate) fn finish(self, id: &str, title: &str, description: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
             <title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>\n{}</svg>\n",
            short(self.width),
            short(self.height),
            escape(title),
            escape(description),
            self.body
        )
    }
}

/// A coordinate to a tenth of a pixel.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), Into::into)
}

/// About how wide a text of this size is drawn; browsers' fonts differ by a tenth either way.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    let em: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | '.' | ',' | ':' | '\'' | '|' => 0.29,
            'm' | 'w' | 'M' | 'W' => 0.85,
            // Ideographs, Hangul and full-width forms fill the em.
            '\u{1100}'..='\u{115f}'
            | '\u{2e80}'..='\u{a4cf}'
            | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}'
            | '\u{ff00}'..='\u{ff60}' => 1.0,
            c if c.is_uppercase() => 0.68,
            _ => 0.57,
        })
        .sum();
    em * size
}
