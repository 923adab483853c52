package nearest

import "strings"

// mostEdits is how many letters may be wrong: of more it would be guessing.
const mostEdits = 2

// maxWord bounds what is measured, in bytes.
const maxWord = 64

// Word returns the candidate that was probably meant by word, or "": the word
// itself where it is one, else the nearest by letters, whatever their case.
func Word(word string, candidates []string) string {
	best, least := "", min(mostEdits, len(word)/2)+1
	for _, c := range candidates {
		if c == word {
			return c
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	return best
}

// distance is the number of letters to insert, remove or replace to make b of a
// (Levenshtein), over bytes: names are ASCII. Long words are far from each other.
func distance(a, b string) int {
	if len(a) > maxWord || len(b) > maxWord {
		return maxWord
	}
	row := make([]int, len(b)+1)
	for i := range row {
		row[i] = i
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for k := range len(b) {
			cost := diagonal
			if a[i] != b[k] {
				cost++
			}
			diagonal = row[k+1]
			row[k+1] = min(cost, row[k]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
