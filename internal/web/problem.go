package web

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// Problem is an error as people see it. Err is logged, never shown.
type Problem struct {
	Status     int
	Title      string
	Text       string // what happened, and what to do
	Again      string // a path to go on at; "" is none
	RetryAfter time.Duration
	Err        error
}

func (p *Problem) Error() string {
	if p.Err != nil {
		return p.Title + ": " + p.Err.Error()
	}
	return p.Title
}

func (p *Problem) Unwrap() error { return p.Err }

// writeError translates err into a page. What it does not know is said to nobody.
func (s *Server) writeError(w http.ResponseWriter, err error) (status int, code string) {
	p, ok := errors.AsType[*Problem](err)
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		p, ok = &Problem{Status: http.StatusRequestEntityTooLarge, Title: "The form is too large", Text: "Go back and send less."}, true
	}
	if errors.Is(err, context.DeadlineExceeded) {
		p, ok = &Problem{Status: http.StatusGatewayTimeout, Title: "Another server is slow", Text: "Try again in a moment."}, true
	}
	if !ok {
		p = &Problem{Status: http.StatusInternalServerError, Title: "Something went wrong here", Text: "It was logged. Try again in a moment."}
	}
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((p.RetryAfter+time.Second-1)/time.Second)))
	}
	id := w.Header().Get("X-Request-Id")
	if renderErr := s.render(w, p.Status, "problem", problemPage{page: page{Title: p.Title}, Problem: *p, RequestID: id}); renderErr != nil {
		http.Error(w, "internal server error "+id, http.StatusInternalServerError)
		return http.StatusInternalServerError, ""
	}
	return p.Status, p.Title
}

// limited says that somebody tried too often.
func limited(wait time.Duration) error {
	return &Problem{
		Status: http.StatusTooManyRequests, Title: "Too many attempts", RetryAfter: wait,
		Text: "Try again in " + wait.Round(time.Second).String() + ".",
	}
}
