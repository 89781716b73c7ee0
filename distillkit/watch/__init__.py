"""What a run is watched for: causes of failure, measured before the first step and at validations."""
