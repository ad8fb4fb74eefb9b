package demo

import (
	"context"
	"errors"
)

func inMemory(ctx context.Context, s *screen, seconds int) error {
	return errors.New("wait")
}
