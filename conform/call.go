package conform

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Call is one invocation of the plugin, as reports show it.
type Call struct {
	// Env holds the CNI_ variables that the plugin was given, sorted.
	Env []string `json:"env"`
	// Stdin, Stdout and Stderr are whole.
	Stdin  string `json:"stdin"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr,omitempty"`
	// Status is the exit status; -1 when a signal ended the plugin.
	Status int `json:"status"`
	// Ended tells the end in words, such as "exit status 1".
	Ended string `json:"ended"`
	// Took is the time from start to end.
	Took time.Duration `json:"took_ns"`
}

// verb is the invocation's CNI_COMMAND.
func (c *Call) verb() string {
	for _, kv := range c.Env {
		if v, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			return v
		}
	}
	return "invocation without CNI_COMMAND"
}

// pluginError is the specification's error object.
type pluginError struct {
	CNIVersion string `json:"cniVersion"`
	Code       *uint  `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

// errorObject decodes what a failed invocation printed.
func (c *Call) errorObject() (*pluginError, error) {
	var e pluginError
	if err := single(c.Stdout, &e); err != nil {
		return nil, fmt.Errorf("%s failed without an error object on its standard output: %w", c.verb(), err)
	}
	if e.Code == nil {
		return nil, fmt.Errorf("%s: the error object has no \"code\": %s", c.verb(), cut(c.Stdout))
	}
	if e.Msg == "" {
		return nil, fmt.Errorf("%s: the error object has no \"msg\": %s", c.verb(), cut(c.Stdout))
	}
	return &e, nil
}

// succeeded is nil when the plugin exited with 0.
func (c *Call) succeeded() error {
	if c.Status == 0 {
		return nil
	}
	return fmt.Errorf("%s was to succeed: %s: %s", c.verb(), c.Ended, c.said())
}

// silent is nil when the plugin exited with 0 and printed nothing.
func (c *Call) silent() error {
	if err := c.succeeded(); err != nil {
		return err
	}
	if strings.TrimSpace(c.Stdout) != "" {
		return fmt.Errorf("%s was to print nothing on success: %s", c.verb(), cut(c.Stdout))
	}
	return nil
}

// refused is nil when the plugin exited with another status than 0, of its own
// will.
func (c *Call) refused() error {
	switch {
	case c.Status == 0:
		return fmt.Errorf("%s was to fail: exit status 0: %s", c.verb(), c.said())
	case c.Status < 0:
		return fmt.Errorf("%s was to fail in order: %s: %s", c.verb(), c.Ended, c.said())
	}
	return nil
}

// code is nil when the plugin failed with an error object of one of the codes.
func (c *Call) code(codes ...uint) error {
	if err := c.refused(); err != nil {
		return err
	}
	e, err := c.errorObject()
	if err != nil {
		return err
	}
	if !slices.Contains(codes, *e.Code) {
		return fmt.Errorf("%s failed with code %d, want %s: %s", c.verb(), *e.Code, orList(codes), cut(e.Msg))
	}
	return nil
}

// names is nil when the error object's text contains the word.
func (c *Call) names(word string) error {
	e, err := c.errorObject()
	if err != nil {
		return err
	}
	if !strings.Contains(e.Msg, word) {
		return fmt.Errorf("%s: the message of the error does not name %s: %q", c.verb(), word, cut(e.Msg))
	}
	return nil
}

// said is what the plugin printed, for messages.
func (c *Call) said() string {
	if out := strings.TrimSpace(c.Stdout); out != "" {
		return cut(strings.Join(strings.Fields(out), " "))
	}
	if out := strings.TrimSpace(c.Stderr); out != "" {
		return "on standard error: " + cut(out)
	}
	return "it printed nothing"
}

// orList prints 4 or "6 or 7".
func orList(codes []uint) string {
	words := make([]string, len(codes))
	for i, c := range codes {
		words[i] = fmt.Sprint(c)
	}
	return strings.Join(words, " or ")
}

// single decodes text that must be one JSON value and nothing else.
func single(text string, v any) error {
	if strings.TrimSpace(text) == "" {
		return errors.New("it is empty")
	}
	d := json.NewDecoder(strings.NewReader(text))
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w in %s", err, cut(text))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("something follows the JSON value: %s", cut(text))
	}
	return nil
}

// process is a started invocation.
type process struct {
	w              *world
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	call           *Call
	begin          time.Time
	cancel         context.CancelFunc
}

// lingering bounds the wait for what a plugin left behind and what still holds
// its standard output.
const lingering = 2 * time.Second

// start runs the plugin in the host namespace with exactly the given CNI_
// variables.
func (w *world) start(env map[string]string, stdin string) (*process, error) {
	p := &process{w: w, call: &Call{Stdin: stdin}}
	var ctx context.Context
	ctx, p.cancel = context.WithTimeout(context.Background(), w.conf.CallLimit)
	p.cmd = exec.CommandContext(ctx, w.conf.Plugin)
	p.cmd.WaitDelay = lingering
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CNI_") {
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	for name, value := range env {
		p.call.Env = append(p.call.Env, name+"="+value)
	}
	slices.Sort(p.call.Env)
	p.cmd.Env = append(p.cmd.Env, p.call.Env...)
	p.cmd.Dir = w.dir
	p.cmd.Stdin = strings.NewReader(stdin)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.begin = time.Now()
	// No death signal: the thread that starts the process ends at once.
	if err := w.host.Do(p.cmd.Start); err != nil {
		p.cancel()
		return nil, fmt.Errorf("start the plugin: %w", err)
	}
	return p, nil
}

// wait waits for the end, which the limit of a call bounds.
func (p *process) wait() *Call {
	defer p.cancel()
	err := p.cmd.Wait()
	c := p.call
	c.Took = time.Since(p.begin)
	c.Stdout, c.Stderr = p.stdout.String(), p.stderr.String()
	c.Status, c.Ended = -1, fmt.Sprint(err)
	if p.cmd.ProcessState != nil {
		c.Status, c.Ended = p.cmd.ProcessState.ExitCode(), p.cmd.ProcessState.String()
	}
	if c.Status < 0 && c.Took >= p.w.conf.CallLimit {
		c.Ended = fmt.Sprintf("killed after %v, the limit of a call", p.w.conf.CallLimit)
	}
	return c
}
