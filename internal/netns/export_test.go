package netns

// For tests in netns_test that fail one step after another.
var (
	MoveInBefore    = moveIn
	ConfigureBefore = configure
	ExtendBefore    = extend
)
