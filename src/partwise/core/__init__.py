"""The nouns: index, update, transform, aggregate, channel, population, schedule, algorithm, model, program, errors."""
