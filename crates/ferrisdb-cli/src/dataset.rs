//! The demo's data set: the names of 34,888 Unicode characters. `data/README.md` says where it comes from.

/// One line of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Character {
    /// The code point.
    pub(crate) code_point: u32,
    /// The general category, two letters, such as "Lu" for upper-case letters.
    pub(crate) category: &'static str,
    /// The name.
    pub(crate) name: &'static str,
}

/// Tab-separated: code point, category, name.
const FILE: &str = include_str!("../data/unicode-names.tsv");

/// The characters in the order of their code points.
///
/// # Panics
/// Never: the file is a part of the program, and a test reads all of it.
pub(crate) fn characters() -> impl Iterator<Item = Character> {
    FILE.lines().map(|line| {
        let mut fields = line.split('\t');
        let mut field = || fields.next().expect("each line of the data set has three fields");
        let code_point = u32::from_str_radix(field(), 16).expect("the first field is a hexadecimal number");
        Character { code_point, category: field(), name: field() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file is whole: as many characters as promised, in order, each with a category and a name.
    #[test]
    fn the_data_set_is_whole() {
        let all: Vec<Character> = characters().collect();
        assert_eq!(all.len(), 34_888);
        assert!(all.is_sorted_by(|a, b| a.code_point < b.code_point));
        assert!(all.iter().all(|character| character.category.len() == 2 && !character.name.is_empty()));
        let e_acute = all.iter().find(|character| character.code_point == u32::from('é')).unwrap();
        assert_eq!((e_acute.category, e_acute.name), ("Ll", "LATIN SMALL LETTER E WITH ACUTE"));
    }
}
