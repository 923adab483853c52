package undo

import (
	"slices"
	"testing"
)

func TestRunTakesBackInReverse(t *testing.T) {
	var l List
	var done []int
	for i := range 3 {
		l.Add(func() { done = append(done, i) })
	}
	l.Run()
	l.Run()
	if !slices.Equal(done, []int{2, 1, 0}) {
		t.Errorf("undone %v, want 2 1 0, once", done)
	}
}

func TestKeepForgets(t *testing.T) {
	var l List
	l.Add(func() { t.Error("undone after Keep") })
	l.Keep()
	l.Run()
}
