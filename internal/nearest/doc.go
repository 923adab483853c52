// Package nearest finds the word that was probably meant by one that nobody
// knows, for error messages.
package nearest
