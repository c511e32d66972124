package components

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Program calls f with a TB for a program that is no test, stops what f started when f returns, and returns
// what f gave to Fatalf. f and Fatalf must stay on one goroutine. Logs go to standard error.
func Program(ctx context.Context, f func(TB)) (err error) {
	p := &program{ctx: ctx}
	defer func() {
		if r := recover(); r != nil && r != any(p) { // p itself is Fatalf's
			p.cleanup()
			panic(r)
		}
		p.cleanup()
		err = p.err
	}()
	f(p)
	return nil
}

type program struct {
	ctx      context.Context
	cleanups []func()
	err      error
}

func (p *program) Helper()                         {}
func (p *program) Cleanup(f func())                { p.cleanups = append(p.cleanups, f) }
func (p *program) Context() context.Context        { return p.ctx }
func (p *program) Failed() bool                    { return p.err != nil }
func (p *program) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (p *program) Fatalf(format string, args ...any) {
	p.err = errors.Join(p.err, fmt.Errorf(format, args...))
	panic(p)
}

func (p *program) TempDir() string {
	dir, err := os.MkdirTemp("", "atcr-components-")
	if err != nil {
		p.Fatalf("components: %v", err)
	}
	p.Cleanup(func() { p.err = errors.Join(p.err, os.RemoveAll(dir)) })
	return dir
}

func (p *program) cleanup() {
	for i := len(p.cleanups) - 1; i >= 0; i-- {
		p.cleanups[i]()
	}
}
