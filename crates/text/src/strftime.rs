//! Python's `strftime`, as far as chat templates use it.

use bitmill_report::Utc;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `when` as `format` asks; the directive that is not known as the error.
pub(crate) fn strftime(format: &str, when: Utc) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let padded = directive != Some('-');
        if !padded {
            directive = rest.next();
        }
        let number = |value: u64, width: usize| match padded {
            true => format!("{value:0width$}"),
            false => value.to_string(),
        };
        let (day, month) = (DAYS[when.weekday as usize % 7], MONTHS[(when.month as usize + 11) % 12]);
        let text = match directive {
            Some('Y') => when.year.to_string(),
            Some('y') => number(when.year % 100, 2),
            Some('m') => number(when.month, 2),
            Some('d') => number(when.day, 2),
            Some('e') => format!("{:>2}", when.day),
            Some('j') => number(when.day_of_year, 3),
            Some('H') => number(when.hour, 2),
            Some('I') => number((when.hour + 11) % 12 + 1, 2),
            Some('M') => number(when.minute, 2),
            Some('S') => number(when.second, 2),
            Some('p') => (if when.hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('A') => day.to_owned(),
            Some('a') => day[..3].to_owned(),
            Some('B') => month.to_owned(),
            Some('b') => month[..3].to_owned(),
            Some('F') => format!("{}-{:02}-{:02}", when.year, when.month, when.day),
            Some('T') => format!("{:02}:{:02}:{:02}", when.hour, when.minute, when.second),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(format!("%{other}")),
            None => return Err("%".to_owned()),
        };
        out.push_str(&text);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_dates_as_python_does() {
        // datetime.fromtimestamp(1735689599, timezone.utc).strftime(…)
        let when = Utc::at(1_735_689_599);
        for (format, text) in [
            ("%d %b %Y", "31 Dec 2024"),
            ("%Y-%m-%d", "2024-12-31"),
            ("%B %-d, %Y at %I:%M %p", "December 31, 2024 at 11:59 PM"),
            ("%A %a %j %y %H %S %% %F %T", "Tuesday Tue 366 24 23 59 % 2024-12-31 23:59:59"),
        ] {
            assert_eq!(strftime(format, when).as_deref(), Ok(text));
        }
        assert_eq!(strftime("%e|%-m|%I", Utc::at(0)).as_deref(), Ok(" 1|1|12"));
        assert_eq!(strftime("%Q", when), Err("%Q".to_owned()));
        assert_eq!(strftime("100%", when), Err("%".to_owned()));
    }
}
